"""Module two, the relaxed side: AdaRound's continuous relaxation."""
