"""Module one, the exact side: QUBOs of layers and the tools of the annealing world."""
