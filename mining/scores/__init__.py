"""How sure a pair is: what a noun's similarities mean, the evidence for a pair, and its calibrated confidence."""
