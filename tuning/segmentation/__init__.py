"""Two-stage segmentation, and its mIoU."""
