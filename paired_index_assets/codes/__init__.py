"""Scalar codes any faiss can read, rounded so that the scores of captions suffer least."""
