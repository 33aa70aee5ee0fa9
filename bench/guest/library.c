/* Integer programs, second part: the hearts of real programs, from Debian's static libraries. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <lz4.h>
#include <lzma.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "bench.h"

/* Each packs and unpacks a text of `size` bytes, and checks that it comes back. */

static void same(const char *a, const char *b, size_t size)
{
    if (memcmp(a, b, size) != 0) {
        bench_die("a text came back changed");
    }
}

static uint64_t run_zlib(uint64_t size)
{
    uLongf packed = compressBound(size), back = size;
    char *text = bench_alloc(size), *to = bench_alloc(packed), *again = bench_alloc(size);
    uint64_t h;

    bench_text(text, size, 21);
    if (compress2((Bytef *)to, &packed, (const Bytef *)text, size, 6) != Z_OK ||
        uncompress((Bytef *)again, &back, (const Bytef *)to, packed) != Z_OK || back != size) {
        bench_die("zlib");
    }
    same(text, again, size);
    h = bench_mix_bytes(packed, to, packed);
    free(text);
    free(to);
    free(again);
    return h;
}

static uint64_t run_lz4(uint64_t rounds)
{
    enum { SIZE = 1 << 20 };
    int bound = LZ4_compressBound(SIZE), packed = 0;
    char *text = bench_alloc(SIZE), *to = bench_alloc((size_t)bound), *again = bench_alloc(SIZE);
    uint64_t h = 0;

    bench_text(text, SIZE, 22);
    for (uint64_t k = 0; k < rounds; k++) {
        packed = LZ4_compress_default(text, to, SIZE, bound);
        if (packed <= 0) {
            bench_die("lz4");
        }
        for (int i = 0; i < 5; i++) {
            if (LZ4_decompress_safe(to, again, packed, SIZE) != SIZE) {
                bench_die("lz4");
            }
        }
        same(text, again, SIZE);
        h = bench_mix(h, (uint64_t)packed);
        text[k * 1000 % SIZE] ^= 1;
    }
    h = bench_mix_bytes(h, to, (size_t)packed);
    free(text);
    free(to);
    free(again);
    return h;
}

static uint64_t run_zstd(uint64_t size)
{
    size_t bound = ZSTD_compressBound(size), packed;
    char *text = bench_alloc(size), *to = bench_alloc(bound), *again = bench_alloc(size);
    uint64_t h;

    bench_text(text, size, 23);
    packed = ZSTD_compress(to, bound, text, size, 5);
    if (ZSTD_isError(packed) || ZSTD_decompress(again, size, to, packed) != size) {
        bench_die("zstd");
    }
    same(text, again, size);
    h = bench_mix_bytes(packed, to, packed);
    free(text);
    free(to);
    free(again);
    return h;
}

static uint64_t run_xz(uint64_t size)
{
    size_t bound = lzma_stream_buffer_bound(size), packed = 0, in = 0, back = 0;
    uint64_t limit = 256 << 20, h;
    uint8_t *text = bench_alloc(size), *to = bench_alloc(bound), *again = bench_alloc(size);

    bench_text((char *)text, size, 24);
    if (lzma_easy_buffer_encode(3, LZMA_CHECK_CRC64, NULL, text, size, to, &packed, bound) != LZMA_OK ||
        lzma_stream_buffer_decode(&limit, 0, NULL, to, &in, packed, again, &back, size) != LZMA_OK || back != size) {
        bench_die("xz");
    }
    same((char *)text, (char *)again, size);
    h = bench_mix_bytes(packed, to, packed);
    free(text);
    free(to);
    free(again);
    return h;
}

static void sql(sqlite3 *db, const char *text)
{
    char *error = NULL;

    if (sqlite3_exec(db, text, NULL, NULL, &error) != SQLITE_OK) {
        bench_die(error);
    }
}

static uint64_t sql_query(sqlite3 *db, const char *text)
{
    sqlite3_stmt *s;
    uint64_t h = 0;

    if (sqlite3_prepare_v2(db, text, -1, &s, NULL) != SQLITE_OK) {
        bench_die(sqlite3_errmsg(db));
    }
    while (sqlite3_step(s) == SQLITE_ROW) {
        for (int c = 0; c < sqlite3_column_count(s); c++) {
            const char *v = (const char *)sqlite3_column_text(s, c);

            h = bench_mix_bytes(h, v == NULL ? "" : v, v == NULL ? 0 : strlen(v));
        }
    }
    sqlite3_finalize(s);
    return h;
}

static uint64_t run_sqlite(uint64_t count)
{
    struct bench_random r = {25};
    sqlite3_stmt *insert;
    sqlite3 *db;
    uint64_t h = 0;

    if (sqlite3_open(":memory:", &db) != SQLITE_OK) {
        bench_die("sqlite3_open");
    }
    sql(db, "create table item(id integer primary key, shop int, price int, name text);"
            "create table shop(id integer primary key, town text); begin");
    for (int i = 0; i < 50; i++) {
        char text[80];

        snprintf(text, sizeof text, "insert into shop values(%d, 'town %d')", i, i * 7 % 50);
        sql(db, text);
    }
    sqlite3_prepare_v2(db, "insert into item values(?, ?, ?, ?)", -1, &insert, NULL);
    for (uint64_t i = 0; i < count; i++) {
        char name[24];

        bench_text(name, 20, bench_next(&r));
        sqlite3_bind_int64(insert, 1, (sqlite3_int64)i);
        sqlite3_bind_int64(insert, 2, (sqlite3_int64)(bench_next(&r) >> 40) % 50);
        sqlite3_bind_int64(insert, 3, (sqlite3_int64)(bench_next(&r) >> 40) % 10000);
        sqlite3_bind_text(insert, 4, name, 20, SQLITE_TRANSIENT);
        if (sqlite3_step(insert) != SQLITE_DONE) {
            bench_die(sqlite3_errmsg(db));
        }
        sqlite3_reset(insert);
    }
    sqlite3_finalize(insert);
    sql(db, "commit; create index by_price on item(price); create index by_name on item(name)");
    h ^= sql_query(db,
                   "select town, count(*), sum(price), max(name) from item join shop on shop.id = shop group by town "
                   "order by 3 desc");
    h ^= sql_query(db,
                   "select name, price from item where price between 500 and 900 and name like '%an%' order by name");
    sql(db,
        "begin; update item set price = price + 1 where shop % 3 = 0; delete from item where price % 5 = 0; commit");
    h ^= sql_query(db, "select count(*), sum(price), min(name), max(length(name)) from item");
    sqlite3_close(db);
    return h;
}

static const char lua_text[] =
    "local n = ...\n"
    "local t, s = {}, 0\n"
    "for i = 1, n do t[i] = { id = i, key = 'k' .. (i * 7919 % n) } end\n"
    "table.sort(t, function(a, b) return a.key < b.key end)\n"
    "local seen = {}\n"
    "for i, v in ipairs(t) do seen[v.key] = (seen[v.key] or 0) + v.id % 10; s = (s * 31 + v.id) % 1000003 end\n"
    "local function fib(k) if k < 2 then return k end return fib(k - 1) + fib(k - 2) end\n"
    "local words = {}\n"
    "for w in ('the quick brown fox jumps over the lazy dog '):rep(n // 50):gmatch('%a+') do\n"
    "  words[w] = (words[w] or 0) + #w end\n"
    "local function obj(x) return setmetatable({ x = x }, { __index = function(_, k) return k == 'y' and x * 2 or 0 end }) end\n"
    "for i = 1, n do local o = obj(i); s = (s + o.x + o.y) % 1000003 end\n"
    "return s + fib(24) + words.quick\n";

static uint64_t run_lua(uint64_t n)
{
    lua_State *l = luaL_newstate();
    uint64_t h;

    luaL_openlibs(l);
    if (luaL_loadstring(l, lua_text) != LUA_OK) {
        bench_die(lua_tostring(l, -1));
    }
    lua_pushinteger(l, (lua_Integer)n);
    if (lua_pcall(l, 1, 1, 0) != LUA_OK) {
        bench_die(lua_tostring(l, -1));
    }
    h = (uint64_t)lua_tointeger(l, -1);
    lua_close(l);
    return h;
}

const struct bench bench_library[] = {
    {.group = "integer", .name = "zlib", .work = 5 << 20, .run = run_zlib},
    {.group = "integer", .name = "lz4", .work = 50, .run = run_lz4},
    {.group = "integer", .name = "zstd", .work = 8 << 20, .run = run_zstd},
    {.group = "integer", .name = "xz", .work = 1500000, .run = run_xz},
    {.group = "integer", .name = "sqlite", .work = 20000, .run = run_sqlite},
    {.group = "integer", .name = "lua", .work = 40000, .run = run_lua},
    {.name = NULL},
};
