"""The accuracy of CLIP on masked regions."""
