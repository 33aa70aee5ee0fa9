# A guest that uses its network as tests/guest/net.py tells it on the kernel's command line: net.KEY=VALUE.
# kernel: generic
# modules: virtio_pci virtio_net e1000
# packages: iperf3
value() { tr ' ' '\n' </proc/cmdline | sed -n "s/^net\.$1=//p"; }
for module in $(value modules | tr , ' '); do modprobe "$module"; done
# Stock e1000 takes two seconds to see its link.
ip link set eth0 up
for _ in 1 2 3 4 5 6 7 8 9 10; do [ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" = 1 ] || sleep 0.5; done
echo "driver $(basename "$(readlink /sys/class/net/eth0/device/driver)") mac $(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu)"
[ ! -e /sys/class/net/eth0/device/features ] || echo "packed $(cut -c35 /sys/class/net/eth0/device/features)"
if [ "$(value address)" = dhcp ]; then
    cat >/tmp/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "nameserver $dns" >/etc/resolv.conf
echo "lease $ip router $router dns $dns name $hostname"
END
    chmod +x /tmp/lease
    udhcpc -i eth0 -s /tmp/lease -q -n -t 10 2>/dev/null || exit 1
else
    ip address add "$(value address)" dev eth0
fi
host=$(value host) url=http://$host:$(value http)
step() {
    case $1 in
    down) wget -q -O - "$url/data" | sha256sum | sed 's/ .*//; s/^/down /' ;;
    up) # What the host gets back is what it gave.
        wget -q -O /tmp/data "$url/data" && nc "$host" "$(value sum)" </tmp/data
        ;;
    many) # Connections side by side.
        for i in 1 2 3 4 5 6 7 8; do (wget -q -O - "$url/data?$i" | sha256sum | sed 's/ .*//' >/tmp/many.$i) & done
        wait
        echo "many $(sort -u /tmp/many.* | wc -l) $(cat /tmp/many.1)"
        ;;
    serve) # Until the host has had enough.
        mkdir -p /tmp/www
        wget -q -O /tmp/www/data "$url/data"
        httpd -p 80 -h /tmp/www
        echo "serving"
        nc -l -p 81 >/dev/null
        ;;
    ping) ping -c 3 -i 0.2 -s 4000 "$host" >/tmp/ping && echo "pong" || cat /tmp/ping ;;
    iperf)
        iperf3 -c "$host" -p "$(value iperf)" -t "$(value seconds)" -f k >/tmp/out
        echo "rate out $(sed -n 's/.* \([0-9.]*\) Kbits.*receiver.*/\1/p' /tmp/out)"
        iperf3 -c "$host" -p "$(value iperf)" -t "$(value seconds)" -f k -R >/tmp/in
        echo "rate in $(sed -n 's/.* \([0-9.]*\) Kbits.*receiver.*/\1/p' /tmp/in)"
        ;;
    esac
}
for s in $(value steps | tr , ' '); do step "$s"; done
echo "errors $(cat /sys/class/net/eth0/statistics/rx_errors /sys/class/net/eth0/statistics/tx_errors | paste -sd+ | bc 2>/dev/null || echo ?)"
true
