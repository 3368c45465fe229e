#!/bin/sh
# Downloads packages of one version, and what they need, to a folder that appears when it is complete.
# Usage: fetch.sh FOLDER PACKAGE...; apt's pins for the version come in PIN, their file's name in PIN_FILE.
# Exit code 3: the archive lists a file that it does not have.
set -eu
folder=$1
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"

# What apt obeys now, but for the version that it is to fetch.
cp -r /etc/apt/preferences.d "$scratch/pins"
printf '%s\n' "$PIN" >"$scratch/pins/$PIN_FILE"

fetch() {
  apt-get install "$@" --yes --no-install-recommends --allow-downgrades --allow-change-held-packages \
    -oAcquire::Retries=3 -oDir::Etc::PreferencesParts="$scratch/pins" -oDir::Cache::Archives="$folder.partial"
}

# What lies on the host's own disk, as a bundle's archives do, apt leaves there.
copy='import re, shutil, sys
from urllib.parse import unquote
for path, name in re.findall(r"^.file:(\S+). (\S+) ", sys.stdin.read(), re.MULTILINE):
    shutil.copyfile(unquote(path), f"{sys.argv[1]}/{name}")'

rm -rf "$folder.partial"
mkdir -p "$folder.partial/partial"
if ! { fetch --print-uris "$@" >"$scratch/uris" && fetch --download-only "$@" &&
  python3 -c "$copy" "$folder.partial" <"$scratch/uris"; } >"$scratch/log" 2>&1; then
  grep '^E:' "$scratch/log" >&2 || tail -n 20 "$scratch/log" >&2
  rm -rf "$folder.partial"
  if grep -Eq '^E: Failed to fetch .* (403|404|410|not found) ' "$scratch/log"; then exit 3; fi
  exit 1
fi
rm -rf "$folder.partial/partial" "$folder.partial/lock"
sync -f "$folder.partial"
mv "$folder.partial" "$folder"
