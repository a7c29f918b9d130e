"""Interval estimates of robust aggregates over few runs.

Agarwal, Schwarzer, Castro, Courville, Bellemare, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", 2021.
"""
