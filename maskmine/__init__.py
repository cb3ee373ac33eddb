"""maskmine: mask–noun pairs from captioned images, and CLIP tuned on them.

The five folders beside this one are its subpackages: in a checkout by symbolic links, which `setup.py` makes, in a
wheel as folders. So the code says `maskmine.mining`, and nothing but `maskmine` is installed.
"""
