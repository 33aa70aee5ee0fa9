/* A disk under test: its event loop runs on a thread of its own, requests are submitted from the test's. */
#ifndef NACELLE_TESTS_BLOCK_FIXTURE_H
#define NACELLE_TESTS_BLOCK_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/event.h"
#include "vmm/backend/block.h"
#include "vmm/backend/block_internal.h"

struct disk_rig {
    struct event_loop *loop;
    pthread_t thread;
    struct block *b;
    char path[64];
    struct nerr e;
};

struct disk_io {
    struct block_request r;
    struct iovec iov[8];
    atomic_int state; /* 0 in flight, 1 done, more: done too often */
    int result;
    pthread_t thread; /* that done() ran on */
};

static inline void *disk_rig_loop(void *ctx)
{
    struct nerr e;
    event_loop_run(ctx, &e);
    return NULL;
}

static inline void disk_rig_init(struct disk_rig *d)
{
    memset(d, 0, sizeof(*d));
    d->loop = event_loop_create(&d->e);
    assert_non_null(d->loop);
    /* The build's directory is on a real file system; /tmp may be a tmpfs, which has no O_DIRECT. */
    snprintf(d->path, sizeof(d->path), "disk-test-XXXXXX");
    int fd = mkstemp(d->path);
    assert_true(fd >= 0);
    close(fd);
}

static inline void disk_rig_size(struct disk_rig *d, uint64_t size)
{
    assert_int_equal(truncate(d->path, (off_t)size), 0);
}

/* Starts the loop's thread, too. */
static inline void disk_rig_open(struct disk_rig *d, struct block_config cfg)
{
    cfg.path = d->path;
    if (block_open(&cfg, d->loop, &d->b, &d->e)) fail_msg("%s", d->e.text);
    assert_int_equal(pthread_create(&d->thread, NULL, disk_rig_loop, d->loop), 0);
}

static inline void disk_rig_close(struct disk_rig *d)
{
    if (!d->b) return;
    event_loop_stop(d->loop);
    pthread_join(d->thread, NULL);
    block_close(d->b);
    d->b = NULL;
}

static inline void disk_rig_destroy(struct disk_rig *d)
{
    disk_rig_close(d);
    event_loop_destroy(d->loop);
    unlink(d->path);
}

static inline void disk_io_done(struct block_request *r, int result)
{
    struct disk_io *io = (struct disk_io *)(void *)((char *)r - offsetof(struct disk_io, r));
    io->result = result;
    io->thread = pthread_self();
    atomic_fetch_add(&io->state, 1);
}

static inline void disk_io_submit(struct disk_rig *d, struct disk_io *io, enum block_op op, uint64_t offset, void *data,
                                  uint64_t length)
{
    io->r = (struct block_request){
        .op = op, .offset = offset, .length = length, .iov = io->iov, .iovs = data ? 1 : 0, .done = disk_io_done};
    io->iov[0] = (struct iovec){.iov_base = data, .iov_len = length};
    atomic_store(&io->state, 0);
    block_submit(d->b, &io->r);
}

static inline int disk_io_wait(struct disk_io *io)
{
    uint64_t end = clock_mono_ns() + 60ull * 1000000000;
    while (!atomic_load(&io->state)) {
        if (clock_mono_ns() > end) fail_msg("a request was not completed within a minute");
        usleep(50);
    }
    assert_int_equal(atomic_load(&io->state), 1);
    return io->result;
}

static inline int disk_do(struct disk_rig *d, enum block_op op, uint64_t offset, void *data, uint64_t length)
{
    struct disk_io io = {.result = 1};
    disk_io_submit(d, &io, op, offset, data, length);
    return disk_io_wait(&io);
}

#endif
