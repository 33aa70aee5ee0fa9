/* See worker.h. */
#include "tests/diff/worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* A case takes well under a millisecond; a batch that makes no progress for this long hangs. */
#define STALL_MS 20000

struct batch *batch_create(void)
{
    void *p = mmap(NULL, sizeof(struct batch), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* The self-test's mistake: an engine that forgets the carry flag when RAX is odd, and sometimes loses a byte. */
static void break_result(const struct diff_case *c, struct diff_result *r)
{
    if ((c->gpr[0] & 7) == 1)
        r->rflags ^= 1;
    else if ((c->gpr[0] & 7) == 3)
        r->mem[PAGE + 8] ^= 0x10;
    else if ((c->gpr[0] & 7) == 5)
        r->xsave[160] ^= 1;
}

static void worker_main(struct worker *w, int in, int out)
{
    char text[120] = "";
    int bad = w->kind == RUNNER_SOFT ? soft_init(text) : native_init(text);
    char go;
    while (read(in, &go, 1) == 1) {
        struct batch *b = w->batch;
        for (uint32_t i = b->first[w->side]; i < b->count; i++) {
            struct diff_result *r = &b->results[w->side][i];
            atomic_store(&b->progress[w->side], i);
            r->status = RUN_NONE;
            r->text[0] = 0;
            if (bad) {
                r->status = RUN_FAIL;
                memcpy(r->text, text, sizeof(r->text));
            } else if (w->kind == RUNNER_SOFT) {
                soft_peer_status = &b->results[SIDE_NATIVE][i].status;
                soft_run(&b->cases[i], r);
            } else {
                native_run(&b->cases[i], r);
                if (w->kind == RUNNER_NATIVE_BROKEN) break_result(&b->cases[i], r);
            }
        }
        if (write(out, &go, 1) != 1) break;
    }
    _exit(0);
}

int worker_start(struct worker *w)
{
    int to[2], from[2];
    if (pipe(to) || pipe(from)) return -1;
    fflush(NULL);
    w->pid = fork();
    if (w->pid < 0) return -1;
    if (w->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(to[1]);
        close(from[0]);
        worker_main(w, to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    w->to = to[1];
    w->from = from[0];
    return 0;
}

void worker_stop(struct worker *w)
{
    if (w->pid <= 0) return;
    kill(w->pid, SIGKILL);
    waitpid(w->pid, NULL, 0);
    close(w->to);
    close(w->from);
    w->pid = 0;
}

/* Blames the case the worker was at and starts a fresh worker behind it. */
static int worker_lost(struct worker *w, enum run_status why)
{
    uint32_t at = atomic_load(&w->batch->progress[w->side]);
    int status = 0;
    if (why == RUN_HANG) kill(w->pid, SIGKILL);
    waitpid(w->pid, &status, 0);
    close(w->to);
    close(w->from);
    w->pid = 0;
    struct diff_result *r = &w->batch->results[w->side][at];
    r->status = why;
    if (why == RUN_CRASH)
        snprintf(r->text, sizeof(r->text), "worker died: %s %d", WIFSIGNALED(status) ? "signal" : "exit status",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    w->batch->first[w->side] = at + 1;
    return worker_start(w);
}

static int worker_go(struct worker *w)
{
    char go = 1;
    return write(w->to, &go, 1) == 1 ? 0 : -1;
}

static int worker_finish(struct worker *w)
{
    for (;;) {
        uint32_t before = atomic_load(&w->batch->progress[w->side]);
        struct pollfd p = {.fd = w->from, .events = POLLIN};
        int n = poll(&p, 1, STALL_MS);
        char done;
        if (n < 0 && errno == EINTR) continue;
        if (n > 0 && read(w->from, &done, 1) == 1) return 0;
        if (n == 0 && atomic_load(&w->batch->progress[w->side]) != before) continue;
        if (worker_lost(w, n == 0 ? RUN_HANG : RUN_CRASH)) return -1;
        if (w->batch->first[w->side] >= w->batch->count) return 0;
        if (worker_go(w)) return -1;
    }
}

int workers_run(struct worker *w, unsigned workers)
{
    for (uint32_t i = 0; i < w->batch->count; i++)
        w->batch->results[SIDE_NATIVE][i].status = w->batch->results[SIDE_ENGINE][i].status = RUN_NONE;
    for (unsigned i = 0; i < workers; i++) {
        w[i].batch->first[w[i].side] = 0;
        if (worker_go(&w[i])) return -1;
    }
    for (unsigned i = 0; i < workers; i++)
        if (worker_finish(&w[i])) return -1;
    return 0;
}
