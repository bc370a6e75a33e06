"""Methods that train back what an alteration broke."""
