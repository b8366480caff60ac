"""Trained models in the forms that others run, each proved before it is kept."""
