#include "cli/option_console.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

#define CONSOLE "--console"
#define VSOCK "--vsock"
#define CID_MIN 3
#define CID_MAX 0xfffffffeull

const char cli_console_help[] =
    "      --console KIND       a virtio console (the guest's /dev/hvc0, hvc1, ...), besides the serial one:\n"
    "        pty[,link=FILE]    a new pseudo-terminal, and a symbolic link to it\n"
    "        socket=FILE        a local socket, one client at a time\n"
    "        file=FILE          output is appended to a file\n"
    "      --vsock cid=N,path=FILE   sockets between guest and host: programs here connect to FILE and say\n"
    "                           'CONNECT port'; port P of CID 2 in the guest leads to the socket FILE_P\n";

static int one_kind(struct machine_port *p, enum char_kind kind, bool *have, struct nerr *e)
{
    if (*have) return nerr_set(e, -EINVAL, CONSOLE ": give one of pty, socket=FILE and file=FILE, not two");
    *have = true;
    p->kind = kind;
    return 0;
}

static int set_key(struct machine_port *p, const struct cli_keyvalue *kv, bool *have, const char **link, struct nerr *e)
{
    int r;
    if (strcmp(kv->key, "pty") == 0) {
        if (kv->value) return nerr_set(e, -EINVAL, CONSOLE ": pty takes no value; give link=FILE for a link to it");
        return one_kind(p, CHAR_PTY, have, e);
    }
    if (strcmp(kv->key, "socket") == 0 || strcmp(kv->key, "file") == 0) {
        r = one_kind(p, kv->key[0] == 's' ? CHAR_SOCKET : CHAR_FILE, have, e);
        return r ? r : cli_keyvalue_text(CONSOLE, kv, &p->path, e);
    }
    if (strcmp(kv->key, "link") == 0) return cli_keyvalue_text(CONSOLE, kv, link, e);
    return nerr_set(e, -EINVAL, CONSOLE ": unknown key %s; there are pty, link, socket and file", kv->key);
}

int cli_console_add(struct cli_consoles *c, const char *text, struct nerr *e)
{
    unsigned n = c->ports;
    bool have = false;
    const char *link = NULL;
    if (n == MACHINE_MAX_PORTS)
        return nerr_set(e, -EINVAL, CONSOLE ": %d consoles are the most that a machine has", MACHINE_MAX_PORTS);
    struct machine_port *p = &c->port[n];
    struct cli_keyvalues *kv = &c->text[n];
    *p = (struct machine_port){0};
    snprintf(p->id, sizeof(p->id), "console%u", n);
    int r = cli_keyvalues_parse(CONSOLE, text, kv, e);
    if (r) return r;
    r = cli_keyvalues_unique(CONSOLE, kv, NULL, e);
    for (unsigned i = 0; i < kv->pairs && !r; i++) r = set_key(p, &kv->pair[i], &have, &link, e);
    if (!r && !have) r = nerr_set(e, -EINVAL, CONSOLE ": which kind? give pty, socket=FILE or file=FILE");
    if (!r && link && p->kind != CHAR_PTY) r = nerr_set(e, -EINVAL, CONSOLE ": link=FILE goes with pty only");
    if (link) p->path = link;
    if (r)
        cli_keyvalues_free(kv);
    else
        c->ports++;
    return r;
}

static int set_vsock_key(struct machine_vsock *v, const struct cli_keyvalue *kv, struct nerr *e)
{
    if (strcmp(kv->key, "cid") == 0)
        return cli_parse_number(VSOCK ": cid", kv->value ? kv->value : "", CID_MIN, CID_MAX, &v->cid, e);
    if (strcmp(kv->key, "path") == 0) return cli_keyvalue_text(VSOCK, kv, &v->path, e);
    return nerr_set(e, -EINVAL, VSOCK ": unknown key %s; there are cid and path", kv->key);
}

int cli_vsock_set(struct cli_consoles *c, struct machine_vsock *v, const char *text, struct nerr *e)
{
    if (v->path) return nerr_set(e, -EINVAL, VSOCK ": a machine has one; give it once");
    int r = cli_keyvalues_parse(VSOCK, text, &c->vsock, e);
    if (r) return r;
    r = cli_keyvalues_unique(VSOCK, &c->vsock, NULL, e);
    for (unsigned i = 0; i < c->vsock.pairs && !r; i++) r = set_vsock_key(v, &c->vsock.pair[i], e);
    if (!r && (!v->cid || !v->path)) r = nerr_set(e, -EINVAL, VSOCK ": give both, as in " VSOCK " cid=3,path=FILE");
    if (r) *v = (struct machine_vsock){0};
    return r;
}

void cli_consoles_free(struct cli_consoles *c)
{
    while (c->ports) cli_keyvalues_free(&c->text[--c->ports]);
    cli_keyvalues_free(&c->vsock);
}
