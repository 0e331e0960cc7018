"""Guides: from a model to a rounded one, from a dimod sampler to a comparison, and what holds.

.. include:: a_model_and_256_images.md
.. include:: a_dimod_sampler.md
.. include:: what_you_can_rely_on.md
"""
