#!/usr/bin/env bash
# Two hosts simulated on this machine: A (10.77.0.1) and B (10.77.0.2), each with network, host name, processes, home,
# /tmp and /dev/shm of its own. Needs root, iproute2 and util-linux.
#   two_hosts.sh up DIR [SHARED..]    DIR and what is shared are seen by both, also below /tmp
#   two_hosts.sh on DIR A|B CMD..     two_hosts.sh down DIR
#   two_hosts.sh cut DIR A|B          as a power cut: nothing of it answers, not even that it is gone
#   two_hosts.sh again DIR A|B [SHARED..]    starts a host that was cut, without anything on it
set -eu
what=$1 dir=$2
shift 2
tag=$(basename "$dir" | tail -c 8)

begin() { # a host's letter, and the folders that it shares
  local host=$1; shift
  cat > "$dir/init$host" <<INIT
set -e
mount --make-rprivate /
hostname host$host
mount --bind "$dir/hosts" /etc/hosts
mount --bind / /mnt  # what /tmp hides next
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs -o size=4g,mode=1777 tmpfs /tmp
for shared in $*; do mkdir -p \$shared && mount --rbind /mnt\$shared \$shared; done
umount -l /mnt
touch "$dir/up$host"
trap : TERM
while :; do sleep 1 & wait; done  # the first process reaps, else 'ray stop' waits for the dead
INIT
  ip netns exec "mp$host$tag" unshare --mount --ipc --uts --pid --fork --mount-proc --kill-child \
    bash "$dir/init$host" > "$dir/log$host" 2>&1 &
  echo $! > "$dir/pid$host"
  for _ in $(seq 100); do [ -e "$dir/up$host" ] && return; sleep 0.1; done
  cat "$dir/log$host" >&2
  return 1
}

case $what in
  up)
    printf '127.0.0.1 localhost\n10.77.0.1 hostA\n10.77.0.2 hostB\n' > "$dir/hosts"
    ip netns add "mpA$tag"; ip netns add "mpB$tag"
    ip link add vethA netns "mpA$tag" type veth peer name vethB netns "mpB$tag"
    number=0
    for host in A B; do
      number=$((number + 1))
      ip -n "mp$host$tag" addr add 10.77.0.$number/24 dev veth$host
      ip -n "mp$host$tag" link set veth$host up
      ip -n "mp$host$tag" link set lo up
      ip -n "mp$host$tag" route add default dev veth$host
      begin $host "$dir" "$@"
    done ;;
  cut)
    ip -n "mp$1$tag" link set "veth$1" down
    ip netns pids "mp$1$tag" | xargs -r kill -9 2> /dev/null || true ;;  # some end with their first process
  again)
    host=$1; shift
    rm "$dir/up$host"
    ip -n "mp$host$tag" link set "veth$host" up
    ip -n "mp$host$tag" route add default dev "veth$host"
    begin "$host" "$dir" "$@" ;;
  on)
    host=$1; shift
    exec nsenter -t "$(pgrep -P "$(cat "$dir/pid$host")")" -n -m -i -u -p -- env HOME=/tmp "$@" ;;
  down)
    for host in A B; do
      ip netns pids "mp$host$tag" | xargs -r kill -9 2> /dev/null || true
      ip netns del "mp$host$tag" || true
    done ;;
esac
