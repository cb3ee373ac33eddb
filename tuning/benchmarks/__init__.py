"""The five public data sets of open-vocabulary segmentation."""
