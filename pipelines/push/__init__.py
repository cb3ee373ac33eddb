"""A set on the Hugging Face hub: a finished run or export, its card and its Croissant."""
