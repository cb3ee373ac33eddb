"""Inputs that are wrong or meant to harm, and who reads them."""
