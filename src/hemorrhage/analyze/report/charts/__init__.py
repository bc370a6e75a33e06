"""The page's charts, as figures of plotly.js."""
