#!/usr/bin/env bash
# An environment of their own for the packages that we are compared with.
#
#   benchmarks/peers/make_environment.sh FOLDER
set -euo pipefail
folder=${1:?the folder of the environment}
here=$(cd "$(dirname "$0")" && pwd)
uv venv --quiet --python "${PYTHON:-python3}" "$folder"
uv pip install --quiet --python "$folder/bin/python" -r "$here/requirements.txt"
"$folder/bin/python" -c "
from importlib.metadata import version
print(*(f'{name} {version(name)}' for name in ('pfl', 'flwr', 'ray', 'torch')), sep='\n')"
