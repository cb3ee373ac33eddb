# Images for workers on a cluster, with the libraries and this checkout:
#   docker build --target ray --tag maskmine:0.1.0 .     (docs/ray.md)
#   docker build --target beam --tag maskmine:0.1.0 .    (docs/beam.md)
# PyTorch from PyPI brings its own CUDA libraries, so that no image of CUDA is needed below it.

# The version of Ray on every pod, and of Python in every process.
FROM rayproject/ray:2.60.0-py311 AS ray
WORKDIR /home/ray/maskmine
COPY --chown=ray:users . .
# Ranges of versions are in setup.py.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[ray,s3,metrics,english]'

FROM apache/beam_python3.11_sdk:2.77.0 AS beam
WORKDIR /opt/maskmine
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[beam,metrics,english]' 'gcsfs>=2024.6'
