"""Pathways of sparse-autoencoder features: the data they stand on, audited whole, and the features and contexts chosen."""
