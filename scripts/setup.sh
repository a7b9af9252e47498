#!/usr/bin/env bash
# Makes the checkout ready: .venv with the versions of constraints.txt, the package in
# editable mode, and a GL library that can draw without a screen. Run by the Makefile.
#   PYTHON       interpreter of .venv (python3)
#   EXTRAS       extras of pyproject.toml to install (dev)
#   TORCH_INDEX  package index that torch and torchvision are taken from
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-dev}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

stop() {
  echo "setup: $*" >&2
  exit 1
}

# obtain WHAT PACKAGE...: install Debian packages where we may, or say how to.
obtain() {
  local what=$1
  shift
  command -v apt-get >/dev/null ||
    stop "$what is missing: install what Debian calls $* and start again."
  [ "$(id -u)" -eq 0 ] ||
    stop "$what is missing: run 'sudo apt-get install $*' and start again."
  echo "setup: $what is missing, installing $*"
  local log
  log=$(apt-get update -qq 2>&1 && DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq -y --no-install-recommends "$@" 2>&1) ||
    stop "$what is missing and 'apt-get install $*' failed: $(tail -n 1 <<<"$log")"
}

# Draws one frame as the environments will; prints what drew it, or what went wrong.
draw() {
  MUJOCO_GL=${MUJOCO_GL:-egl} timeout 60 .venv/bin/python - 2>&1 <<'END' | tail -n 1
import mujoco
from OpenGL import GL

renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16)
renderer.render()
print(GL.glGetString(GL.GL_RENDERER).decode())
renderer.close()
END
}

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
  stop "$PYTHON does not run: give an interpreter, as make PYTHON=python3.11."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  stop "$PYTHON is Python $version but 3.11 or newer is needed: make PYTHON=python3.11."
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
  obtain "Python's venv module" "python$version-venv"

rm -f .venv/ready
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  echo "setup: making .venv with Python $version"
  "$PYTHON" -m venv --clear .venv
fi

pip() {
  .venv/bin/python -m pip "$@" ||
    stop "pip failed, see above; start again to go on from where it stopped."
}
# The build tools first: with them pinned and present, building needs no isolation.
pip install --quiet --constraint constraints.txt setuptools hatchling editables
if [ -n "${TORCH_INDEX:-}" ]; then
  pip install --constraint constraints.txt --index-url "$TORCH_INDEX" \
    --no-deps --force-reinstall torch torchvision
elif [ ! -e /proc/driver/nvidia ] &&
  ! compgen -G '.venv/lib/*/site-packages/torch' >/dev/null; then
  echo "setup: if pip takes a CUDA torch of some GB, which this machine has no driver" \
    "for, stop it and give an index of CPU wheels: make setup TORCH_INDEX=URL"
fi
pip install --constraint constraints.txt --use-pep517 --no-build-isolation \
  --editable ".[$EXTRAS]"

if ! drawn=$(draw); then
  obtain "a GL library that draws without a screen" libegl1 libopengl0 libgl1-mesa-dri
  drawn=$(draw) || stop "MuJoCo cannot draw: $drawn"
fi
pwd -P >.venv/ready
echo "setup: ready; frames are drawn by $drawn"
