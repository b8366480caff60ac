"""How good a classifier is on images that it has never seen."""
