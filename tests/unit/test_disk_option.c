/* --disk and the KEY=VALUE parser behind it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "cli/option_disk.h"

static struct cli_disks disks;

static struct machine_disk *good(const char *text)
{
    struct nerr e;
    if (cli_disk_add(&disks, text, &e)) fail_msg("%s: %s", text, e.text);
    return &disks.disk[disks.disks - 1];
}

static void bad(const char *text, const char *says)
{
    struct nerr e;
    unsigned before = disks.disks;
    if (!cli_disk_add(&disks, text, &e)) fail_msg("%s was taken", text);
    if (!strstr(e.text, says)) fail_msg("%s: '%s' does not say '%s'", text, e.text, says);
    assert_int_equal(disks.disks, before);
    assert_null(strchr(e.text, '\n'));
}

static int teardown(void **state)
{
    (void)state;
    cli_disks_free(&disks);
    memset(&disks, 0, sizeof(disks));
    return 0;
}

static void test_good(void **state)
{
    (void)state;
    struct machine_disk *d = good("a.img");
    assert_string_equal(d->block.path, "a.img");
    assert_int_equal(d->model, MACHINE_DISK_VIRTIO);
    assert_int_equal(d->block.cache, BLOCK_CACHE_WRITEBACK);
    assert_true(d->block.discard);
    assert_false(d->split_ring);
    assert_false(d->block.readonly);
    assert_null(d->block.format);
    assert_string_equal(d->id, "disk0");
    d = good(
        "path=/x/b,,c=d.img,if=ahci,ro,serial=S 1,cache=none,format=qcow2,discard=off,aio=threads,packed=off,id=root");
    assert_string_equal(d->block.path, "/x/b,c=d.img");
    assert_int_equal(d->model, MACHINE_DISK_AHCI);
    assert_true(d->block.readonly);
    assert_string_equal(d->serial, "S 1");
    assert_int_equal(d->block.cache, BLOCK_CACHE_NONE);
    assert_string_equal(d->block.format, "qcow2");
    assert_false(d->block.discard);
    assert_true(d->split_ring);
    assert_int_equal(d->block.aio, BLOCK_AIO_THREADS);
    assert_string_equal(d->id, "root");
    d = good("ro,path=ro,read_bps=1,write_bps=2K,total_bps=3M,read_iops=4,write_iops=5k,total_iops=6M");
    assert_true(d->block.readonly);
    assert_string_equal(d->block.path, "ro");
    assert_int_equal(d->block.limits.read_bps, 1);
    assert_int_equal(d->block.limits.write_bps, 2048);
    assert_int_equal(d->block.limits.total_bps, 3 << 20);
    assert_int_equal(d->block.limits.read_iops, 4);
    assert_int_equal(d->block.limits.write_iops, 5000);
    assert_int_equal(d->block.limits.total_iops, 6000000);
    assert_string_equal(d->id, "disk2");
    d = good("nbd://localhost:10809/export,ro=off,cache=writethrough");
    assert_string_equal(d->block.path, "nbd://localhost:10809/export");
    assert_false(d->block.readonly);
    assert_int_equal(d->block.cache, BLOCK_CACHE_WRITETHROUGH);
    d = good("nbd+unix:///export?socket=/run/nbd,,1=2.sock,ro");
    assert_string_equal(d->block.path, "nbd+unix:///export?socket=/run/nbd,1=2.sock");
    assert_true(d->block.readonly);
    assert_string_equal(good("nbd+unix:///?socket=a")->block.path, "nbd+unix:///?socket=a");
    assert_string_equal(good("/srv/a=b.img,if=ahci")->block.path, "/srv/a=b.img");
    assert_string_equal(good("a1=")->block.path, "a1=");
    assert_string_equal(good("path=a=b.img")->block.path, "a=b.img");
    assert_string_equal(good("x,serial=12345678901234567890")->serial, "12345678901234567890");
}

static void test_messages(void **state)
{
    (void)state;
    bad("", "empty item");
    bad("a,", "empty item");
    bad("a,=x", "empty item");
    bad("if=virtio", "which file");
    bad("path=", "needs a value");
    bad("a,path=b", "two files, a and b");
    bad("a,path", "path needs a value");
    bad("cach=none", "unknown key cach"); /* a slip, rather than a file */
    bad("./a=b,bogus=1", "unknown key bogus");
    bad("a,if=scsi", "virtio, ahci");
    bad("a,if", "virtio, ahci");
    bad("a,cache=back", "writeback");
    bad("a,ro=maybe", "ro=on");
    bad("a,ro,ro", "twice");
    bad("a,bogus=1", "unknown key bogus");
    bad("a,b", "unknown key b");
    bad("a,read_bps=", "no number");
    bad("a,read_bps", "no number");
    bad("a,read_bps=-1", "no number");
    bad("a,read_bps=1X", "no number");
    bad("a,read_bps=1KK", "no number");
    bad("a,read_bps=99999999999999999999", "no number");
    bad("a,read_bps=99999999999T", "no number");
    bad("a,serial=123456789012345678901", "20 printable");
    bad("a,serial=a\tb", "20 printable");
    bad("a,id=a b", "letters, digits");
    bad("a,id=12345678901234567890123456789012", "letters, digits");
    bad("a,format=vmdk", "raw, qcow2");
    good("a,id=x");
    bad("b,id=x", "two disks");
    char many[1024] = "a";
    for (unsigned i = 0; i < 70; i++) strcat(many, ",k=v");
    bad(many, "more than 64");
    while (disks.disks < MACHINE_MAX_DISKS) good("a");
    bad("a", "the most");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_good, teardown),
        cmocka_unit_test_teardown(test_messages, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
