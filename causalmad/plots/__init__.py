"""Plots and notebook tables of numbers and names: no model is seen here, and matplotlib's settings stay as they are."""
