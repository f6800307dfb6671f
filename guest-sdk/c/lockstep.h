/* Write a replicated state machine for Lockstep in C.
 *
 * A plugin defines what is declared under "what the author writes", and is compiled together with
 * `lockstep.c`. That is all: no libc, no code generator.
 *
 * What the author promises, and what the host relies on:
 *  - the state and the answers are a function of what the machine was given: neither depends on an
 *    address, on uninitialised memory, or on a static variable that `ls_restore` does not bring back;
 *  - a restored machine behaves in every respect like the one that wrote the snapshot;
 *  - equal states write equal snapshots.
 *
 * The contract itself is `wit/fsm.wit`; the names here are its names. */
#ifndef LOCKSTEP_H
#define LOCKSTEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Some bytes, of somebody else. */
typedef struct {
    const uint8_t *data;
    size_t size;
} ls_bytes;

/* Everything that a machine may know about "now"; equal on every replica. */
typedef struct {
    uint64_t index;    /* of the entry in the log; increases, with gaps */
    uint64_t time_ms;  /* since 1970, stamped by the leader; never decreases */
    uint64_t seed[2];  /* pseudo-random, the same for all commands of an entry; not secret */
    uint32_t position; /* of the command in its entry, from 0 on; 0 outside of `ls_apply` */
} ls_context;

/* What a machine says about itself. */
typedef struct {
    const char *name;                /* short and stable, such as "kv" */
    const char *version;             /* for people */
    uint32_t snapshot_format;        /* what `ls_snapshot` writes; raised when that changes */
    uint32_t oldest_readable_format; /* the oldest one that `ls_restore` still reads */
} ls_info;

/* Who wrote the snapshot that is being restored. */
typedef struct {
    ls_bytes writer_name, writer_version;
    uint32_t format;
    uint64_t index, time_ms;
} ls_header;

/* A growing sequence of bytes; all zero is an empty one. */
typedef struct {
    uint8_t *data;
    size_t size, space;
} ls_buffer;

/* A normal, replicated answer, or one that says why the rules of the machine refuse. */
typedef enum { LS_OK, LS_REJECTED } ls_verdict;

/* Why something failed; NULL if nothing did. */
typedef const struct ls_failed *ls_failure;
typedef enum { LS_INVALID_CONFIG, LS_UNSUPPORTED_FORMAT, LS_CORRUPT, LS_OTHER } ls_failure_kind;

/* ---- What the author writes. */

extern const ls_info ls_about;

/* Builds the initial state. */
ls_failure ls_init(const ls_context *ctx, ls_bytes config);

/* Executes a command: changes the state and puts the answer. `command` is gone afterwards; what is
 * to stay must be copied. Nothing may be taken back from the answer, only put to it. */
ls_verdict ls_apply(const ls_context *ctx, ls_bytes command, ls_buffer *answer);

/* Answers a question about the state and must not change it. */
ls_verdict ls_query(const ls_context *ctx, ls_bytes request, ls_buffer *answer);

/* Writes the whole state, with `ls_write` and its relatives. */
ls_failure ls_snapshot(void);

/* Builds the state from what `ls_snapshot` wrote, with `ls_read` and its relatives, instead of
 * `ls_init`. Formats that `ls_about` excludes and bytes left over are refused by `lockstep.c`. */
ls_failure ls_restore(const ls_header *header, ls_bytes config);

/* The rest is optional. A line `LS_EXPORT_…;` in the author's file says that it is there. */

/* `LS_EXPORT_WAKE;` The timer's time has come. */
void ls_wake(const ls_context *ctx);

/* `LS_EXPORT_DIGEST;` At most 64 bytes that summarise the state at little cost. */
ls_bytes ls_digest(void);

/* `LS_EXPORT_SELF_TEST(independent_of_packing);` Commands and queries that are worth trying. */
void ls_test_command(uint64_t number, ls_buffer *command);
void ls_test_query(uint64_t number, ls_buffer *query);

/* ---- What the author calls. */

#define LS_IMPORT(interface, function) \
    __attribute__((import_module("lockstep:fsm/" interface "@0.2.0"), import_name(function)))

/* Memory, never NULL: without memory the instance ends. What is allocated is not initialised. */
void *ls_alloc(size_t size);
void *ls_realloc(void *old, size_t size);
void ls_free(const void *memory);
/* Memory that is freed when the current call ends. */
void *ls_scratch(size_t size);
/* A copy, to be freed with `ls_free(copy.data)`. */
ls_bytes ls_copy(ls_bytes bytes);

void ls_put(ls_buffer *to, ls_bytes bytes);
void ls_put_text(ls_buffer *to, const char *text);
void ls_put_number(ls_buffer *to, int64_t number);
/* Puts the reason: `return ls_reject(answer, "there is no such key");`. */
ls_verdict ls_reject(ls_buffer *answer, const char *why);
/* Makes a failure: `return ls_fail(LS_CORRUPT, "its keys are out of order");`. */
ls_failure ls_fail(ls_failure_kind kind, const char *why);

/* Less than, equal to or greater than 0, like memcmp; the shorter one comes first. */
int ls_compare(ls_bytes a, ls_bytes b);
/* The bytes of a text that ends with a zero byte. */
ls_bytes ls_text(const char *text);

/* The snapshot being taken. Numbers are little-endian; a block is its length as `uint32_t`, then
 * its bytes. */
void ls_write(ls_bytes bytes);
void ls_write_u64(uint64_t number);
void ls_write_block(ls_bytes block);

/* The snapshot being restored. If it ends too early, or a block is longer than `size_max`, reading
 * gives nothing but zeros and empty blocks from then on, `ls_read_failed` says so, and the restore
 * fails with the reason, whatever `ls_restore` returns. A block is to be freed with `ls_free`. */
void ls_read(void *into, size_t size);
uint64_t ls_read_u64(void);
ls_bytes ls_read_block(size_t size_max);
bool ls_read_failed(void);

typedef enum { LS_TRACE, LS_DEBUG, LS_INFO, LS_WARN, LS_ERROR } ls_level;
void ls_log(ls_level level, const char *target, const char *message);
/* Logs the message and ends the instance: for what cannot happen. */
__attribute__((noreturn)) void ls_panic(const char *message);

/* Only in `ls_apply` and `ls_wake`; a topic has at most 256 bytes, a payload 65,536. */
void ls_emit(ls_bytes topic, ls_bytes payload);

/* Only in `ls_init`, `ls_apply` and `ls_wake`. There is one timer. */
LS_IMPORT("timer", "wake-at") void ls_wake_at(uint64_t time_ms);
LS_IMPORT("timer", "cancel") void ls_wake_never(void);

/* ---- How the optional parts are exported. */

#define LS_EXPORT(interface, function) \
    __attribute__((export_name("lockstep:fsm/" interface "@0.2.0#" function)))

void ls_call_ends(void);
const ls_bytes *ls_test_bytes(void (*make)(uint64_t, ls_buffer *), uint64_t number);

#define LS_EXPORT_WAKE                                                                          \
    LS_EXPORT("wake", "wake")                                                                   \
    void ls_export_wake(uint64_t index, uint64_t time_ms, uint64_t seed0, uint64_t seed1) {     \
        const ls_context ctx = {index, time_ms, {seed0, seed1}, 0};                             \
        ls_wake(&ctx);                                                                          \
        ls_call_ends();                                                                         \
    }                                                                                           \
    extern const ls_info ls_about

#define LS_EXPORT_DIGEST                                                                        \
    LS_EXPORT("digest", "digest") const ls_bytes *ls_export_digest(void) {                      \
        static ls_bytes digest;                                                                 \
        digest = ls_digest();                                                                   \
        return &digest;                                                                         \
    }                                                                                           \
    extern const ls_info ls_about

#define LS_EXPORT_SELF_TEST(independent_of_packing)                                             \
    LS_EXPORT("self-test", "claim") int ls_export_test_claim(void) {                            \
        return independent_of_packing;                                                          \
    }                                                                                           \
    LS_EXPORT("self-test", "command") const ls_bytes *ls_export_test_command(uint64_t number) { \
        return ls_test_bytes(ls_test_command, number);                                          \
    }                                                                                           \
    LS_EXPORT("self-test", "query") const ls_bytes *ls_export_test_query(uint64_t number) {     \
        return ls_test_bytes(ls_test_query, number);                                            \
    }                                                                                           \
    extern const ls_info ls_about

#ifdef __cplusplus
}
#endif

#endif
