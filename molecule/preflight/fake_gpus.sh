#!/bin/sh
# Makes a container look like a host with NVIDIA GPUs: mounts over what the kernel shows, commands first on PATH.
# fake_gpus.sh GPUS LOADED ON_DISK (versions, or "" for none); `fake_gpus.sh undo` removes it all.
set -eu
fake=/run/fake-gpus
undo() {
  for place in /sys/bus/pci/devices /proc/driver /proc/modules; do
    while mountpoint -q "$place"; do umount "$place"; done
  done
  rm -rf "$fake" /usr/local/sbin/nvidia-smi /usr/local/sbin/modinfo
}
undo
[ "$1" = undo ] && exit
gpus=$1 loaded=$2 on_disk=$3

mkdir -p "$fake/pci" "$fake/driver"
printf '#!/bin/sh\nexit 9\n' >/usr/local/sbin/nvidia-smi
: >"$fake/modules"
i=0
while [ $i -lt "$gpus" ]; do
  mkdir "$fake/pci/0000:0$i:00.0"
  echo 0x10de >"$fake/pci/0000:0$i:00.0/vendor"
  echo 0x030200 >"$fake/pci/0000:0$i:00.0/class"
  echo 0x20f1 >"$fake/pci/0000:0$i:00.0/device"
  [ -z "$loaded" ] || echo "echo '$i, NVIDIA A100-PCIE-40GB, $loaded, 00000000:0$i:00.0, 40536, Enabled, 0'"
  i=$((i + 1))
done >"$fake/answers"
if [ -n "$loaded" ]; then
  mkdir "$fake/driver/nvidia"
  echo "NVRM version: NVIDIA UNIX x86_64 Kernel Module  $loaded  Thu May  2 14:37:44 UTC 2024" \
    >"$fake/driver/nvidia/version"
  echo "nvidia 35323904 2 - Live 0x0 (POE)" >"$fake/modules"
  { echo '#!/bin/sh'; cat "$fake/answers"; } >/usr/local/sbin/nvidia-smi
fi
printf '#!/bin/sh\n[ -n "%s" ] && echo "%s"\n' "$on_disk" "$on_disk" >/usr/local/sbin/modinfo
chmod 755 /usr/local/sbin/nvidia-smi /usr/local/sbin/modinfo
mount --bind "$fake/pci" /sys/bus/pci/devices
mount --bind "$fake/driver" /proc/driver
[ ! -e /proc/modules ] || mount --bind "$fake/modules" /proc/modules  # a kernel without modules has no such file
