"""Scoring, confidence intervals, sizes, tables and plots."""
