/* --net. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "cli/option_net.h"

static struct cli_nics nics;

static struct machine_nic *good(const char *text)
{
    struct nerr e;
    if (cli_net_add(&nics, text, &e)) fail_msg("%s: %s", text, e.text);
    return &nics.nic[nics.n - 1];
}

static void bad(const char *text, const char *says)
{
    struct nerr e;
    unsigned before = nics.n;
    if (!cli_net_add(&nics, text, &e)) fail_msg("%s was taken", text);
    if (!strstr(e.text, says)) fail_msg("%s: '%s' does not say '%s'", text, e.text, says);
    if (strncmp(e.text, "--net", 5) != 0) fail_msg("%s: '%s' does not name the option", text, e.text);
    assert_int_equal(nics.n, before);
    assert_null(strchr(e.text, '\n'));
}

static int teardown(void **state)
{
    (void)state;
    cli_nics_free(&nics);
    return 0;
}

static void test_good(void **state)
{
    (void)state;
    struct machine_nic *n = good("user");
    assert_int_equal(n->net.kind, NET_USER);
    assert_int_equal(n->model, MACHINE_NIC_VIRTIO);
    assert_int_equal(n->queues, 1);
    assert_int_equal(n->net.user.forwards, 0);
    n = good("tap=vm-tap0,model=e1000,mac=52:54:00:aB:cd:EF,id=lan");
    assert_int_equal(n->net.kind, NET_TAP);
    assert_string_equal(n->net.tap.name, "vm-tap0");
    assert_int_equal(n->model, MACHINE_NIC_E1000);
    assert_memory_equal(n->mac, "\x52\x54\x00\xab\xcd\xef", 6);
    assert_string_equal(n->id, "lan");
    n = good("none,queues=4,mtu=9000,packed=off");
    assert_int_equal(n->net.kind, NET_NONE);
    assert_int_equal(n->queues, 4);
    assert_true(n->split_ring);
    assert_int_equal(n->net.mtu, 9000);
    n = good("user,avg_in=10M,peak_in=20M,burst_in=64K,avg_out=1G,peak_out=2G,burst_out=1M");
    assert_int_equal(n->net.limits.avg_in, 10000000);
    assert_int_equal(n->net.limits.peak_in, 20000000);
    assert_int_equal(n->net.limits.burst_in, 65536);
    assert_int_equal(n->net.limits.avg_out, 1000000000);
    assert_int_equal(n->net.limits.peak_out, 2000000000);
    assert_int_equal(n->net.limits.burst_out, 1048576);
}

static void test_user(void **state)
{
    (void)state;
    struct machine_nic *n = good("user,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-10.0.2.20:5353,restrict=on,"
                                 "net=192.168.76.0/24,dns=192.168.76.9,hostname=guest,domain=lan,ipv6=off");
    const struct net_user_config *u = &n->net.user;
    assert_int_equal(u->forwards, 2);
    assert_false(u->forward[0].udp);
    assert_int_equal(ntohl(u->forward[0].host.s_addr), 0x7f000001);
    assert_int_equal(u->forward[0].host_port, 2222);
    assert_int_equal(u->forward[0].guest.s_addr, 0);
    assert_int_equal(u->forward[0].guest_port, 22);
    assert_true(u->forward[1].udp);
    assert_int_equal(u->forward[1].host.s_addr, 0);
    assert_int_equal(ntohl(u->forward[1].guest.s_addr), 0x0a000214);
    assert_true(u->restricted);
    assert_true(u->no_ipv6);
    assert_int_equal(ntohl(u->network.s_addr), 0xc0a84c00);
    assert_int_equal(ntohl(u->mask.s_addr), 0xffffff00);
    assert_int_equal(ntohl(u->dns.s_addr), 0xc0a84c09);
    assert_string_equal(u->hostname, "guest");
    assert_string_equal(u->domain, "lan");
}

static void test_bad(void **state)
{
    (void)state;
    bad("", "empty item");
    bad("bridge", "no kind of network");
    bad("user=1", "no kind of network");
    bad("model=e1000", "no kind of network");
    bad("tap", "no name of an interface");
    bad("tap=", "no name of an interface");
    bad("tap=a-name-that-is-too-long", "no name of an interface");
    bad("tap=a/b", "no name of an interface");
    bad("tap=a%d", "no name of an interface");
    bad("user,model=ne2000", "give one of: virtio, e1000");
    bad("user,mac=1:2:3:4:5:6", "no address");
    bad("user,mac=52:54:00:12:34:5g", "no address");
    bad("user,mac=53:54:00:12:34:56", "group address");
    bad("user,mac=00:00:00:00:00:00", "all zeros");
    bad("user,mac", "no address");
    bad("user,mtu=100", "out of range");
    bad("user,mtu=x", "no number");
    bad("user,queues=0", "out of range");
    bad("user,queues=9", "out of range");
    bad("user,model=e1000,queues=2", "one queue");
    bad("user,model=e1000,mtu=9000", "too large for model=e1000");
    bad("user,id=", "no name");
    bad("user,id=a b", "no name");
    bad("user,frob=1", "unknown item 'frob'");
    bad("user,mtu=1500,mtu=1500", "given twice");
    bad("tap=t0,hostfwd=tcp::1-:1", "goes with user only");
    bad("none,restrict=on", "goes with user only");
    bad("user,restrict=perhaps", "restrict");
    bad("user,hostfwd=tcp::1-", "no forward");
    bad("user,hostfwd=tcp::0-:1", "no forward");
    bad("user,hostfwd=tcp::65536-:1", "no forward");
    bad("user,hostfwd=sctp::1-:1", "no forward");
    bad("user,hostfwd=tcp:localhost:1-:1", "no forward");
    bad("user,hostfwd=tcp:1-:1", "no forward");
    bad("user,hostfwd", "no forward");
    bad("user,net=10.0.0.0", "no network");
    bad("user,net=10.0.0.0/30", "no network");
    bad("user,net=10.0.0.1/24", "bits set");
    bad("user,net=nonsense/24", "no network");
    bad("user,dns=8.8.8", "no IPv4 address");
    bad("user,hostname=", "hostname");
    bad("user,avg_in=lots", "no number");
    bad("user,peak_in=1M", "peak_in without avg_in");
    bad("user,burst_out=1M", "burst_out without avg_out");
    bad("user,avg_in=2M,peak_in=1M", "below avg_in");
    bad("user,avg_in=100", "less than 8K");
}

static void test_many(void **state)
{
    (void)state;
    for (int i = 0; i < MACHINE_MAX_NICS; i++) good("none");
    bad("none", "more than 8");
    cli_nics_free(&nics);
    char text[4096] = "user";
    for (unsigned i = 0; i < NET_MAX_FORWARDS; i++) strcat(text, ",hostfwd=tcp::80-:80");
    assert_int_equal(good(text)->net.user.forwards, NET_MAX_FORWARDS);
    strcat(text, ",hostfwd=tcp::80-:80");
    bad(text, "more than");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_good, teardown),
        cmocka_unit_test_teardown(test_user, teardown),
        cmocka_unit_test_teardown(test_bad, teardown),
        cmocka_unit_test_teardown(test_many, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
