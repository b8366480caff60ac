"""Measuring on a device: under which conditions, by which runtime, with an honest stopwatch."""
