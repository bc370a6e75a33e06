"""Alterations that no one deploys: they ask how much a model bears, without the details of a method."""
