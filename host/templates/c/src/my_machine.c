/* A count for each key.
 *
 * Commands: `add KEY N` is answered with the new count, `reset KEY` with the last one. Queries:
 * `count KEY` and `total`. When a count passes a hundred, or another one, those who watch
 * `hundreds/` hear of it.
 *
 * This file promises what every state machine promises. The answers and the state are a function
 * of the commands. A machine that was restored from a snapshot goes on like the one that wrote it.
 * Equal states write equal snapshots. A query changes nothing. `lockstep test` checks it. */
#include "lockstep.h"

enum { KEY_BYTES_MAX = 128 }; /* whatever a client can make grow has a bound */

const ls_info ls_about = {"my-machine", "0.1.0", 1, 1};

/* The whole state: the counts that are not 0, by key. The digest is derived from them, so it is no
 * part of the snapshot. */
typedef struct {
    ls_bytes key;
    uint64_t count;
} entry;

static entry *entries;
static size_t size, space;
static uint64_t digest;

/* Where a key is, or would be. */
static size_t place_of(ls_bytes key) {
    size_t low = 0, high = size;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (ls_compare(entries[middle].key, key) < 0) low = middle + 1;
        else high = middle;
    }
    return low;
}

static bool is_at(size_t place, ls_bytes key) {
    return place < size && ls_compare(entries[place].key, key) == 0;
}

static uint64_t count_of(ls_bytes key) {
    const size_t place = place_of(key);
    return is_at(place, key) ? entries[place].count : 0;
}

/* FNV-1a of a key and its count; 0 if nothing is counted. */
static uint64_t checksum(ls_bytes key, uint64_t count) {
    if (count == 0) return 0;
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < key.size; i++) hash = (hash ^ key.data[i]) * 0x100000001b3;
    for (int i = 0; i < 8; i++) hash = (hash ^ (count >> 8 * i & 0xff)) * 0x100000001b3;
    return hash;
}

/* Nothing is kept for a count of 0: equal states must be equal to their last byte. */
static void set(ls_bytes key, uint64_t count) {
    const size_t place = place_of(key);
    const bool there = is_at(place, key);
    digest += checksum(key, count) - checksum(key, there ? entries[place].count : 0);
    if (there && count > 0) {
        entries[place].count = count;
    } else if (there) {
        ls_free(entries[place].key.data);
        for (size_t i = place + 1; i < size; i++) entries[i - 1] = entries[i];
        size--;
    } else if (count > 0) {
        if (size == space) {
            space = space == 0 ? 16 : 2 * space;
            entries = ls_realloc(entries, space * sizeof *entries);
        }
        for (size_t i = size++; i > place; i--) entries[i] = entries[i - 1];
        entries[place] = (entry){ls_copy(key), count};
    }
}

/* ---- Words. */

/* Takes the next word, which ends at a space or at the end. */
static ls_bytes word(ls_bytes *rest) {
    ls_bytes found = {rest->data, 0};
    while (found.size < rest->size && found.data[found.size] != ' ') found.size++;
    const size_t taken = found.size < rest->size ? found.size + 1 : found.size;
    rest->data += taken, rest->size -= taken;
    return found;
}

static bool is(ls_bytes bytes, const char *text) {
    return ls_compare(bytes, ls_text(text)) == 0;
}

/* Reads a number; says whether it is one of at most 18 digits. */
static bool number(ls_bytes digits, uint64_t *value) {
    *value = 0;
    for (size_t i = 0; i < digits.size; i++) {
        if (digits.data[i] < '0' || digits.data[i] > '9') return false;
        *value = *value * 10 + (digits.data[i] - '0');
    }
    return digits.size > 0 && digits.size <= 18;
}

/* ---- The machine. */

ls_failure ls_init(const ls_context *ctx, ls_bytes config) {
    (void)ctx, (void)config;
    return NULL;
}

static void tell(ls_bytes key, uint64_t count) {
    ls_buffer topic = {0}, payload = {0};
    ls_put_text(&topic, "hundreds/");
    ls_put(&topic, key);
    ls_put_number(&payload, count);
    ls_emit((ls_bytes){topic.data, topic.size}, (ls_bytes){payload.data, payload.size});
    ls_free(topic.data);
    ls_free(payload.data);
}

/* Checks first, changes afterwards: what is rejected must not be half done. A trap would stop every
 * replica, so what cannot be done is rejected. */
ls_verdict ls_apply(const ls_context *ctx, ls_bytes command, ls_buffer *answer) {
    (void)ctx;
    const ls_bytes verb = word(&command), key = word(&command);
    if (key.size == 0 || key.size > KEY_BYTES_MAX)
        return ls_reject(answer, "expected `add KEY N` or `reset KEY`, KEY of 1 to 128 bytes");
    const uint64_t before = count_of(key);
    if (is(verb, "add")) {
        uint64_t by;
        if (!number(command, &by)) return ls_reject(answer, "N has 1 to 18 digits");
        if (before + by > INT64_MAX) return ls_reject(answer, "the count would exceed 63 bits");
        set(key, before + by);
        ls_put_number(answer, before + by);
        if ((before + by) / 100 > before / 100) tell(key, before + by);
        return LS_OK;
    }
    if (is(verb, "reset") && command.size == 0) {
        if (before == 0) return ls_reject(answer, "nothing was counted for that key");
        set(key, 0);
        ls_put_number(answer, before);
        return LS_OK;
    }
    return ls_reject(answer, "expected `add KEY N` or `reset KEY`");
}

ls_verdict ls_query(const ls_context *ctx, ls_bytes request, ls_buffer *answer) {
    (void)ctx;
    const ls_bytes verb = word(&request);
    if (is(verb, "count") && request.size > 0) {
        ls_put_number(answer, count_of(request));
        return LS_OK;
    }
    if (is(verb, "total") && request.size == 0) {
        uint64_t total = 0;
        for (size_t i = 0; i < size; i++)
            total = entries[i].count > INT64_MAX - total ? INT64_MAX : total + entries[i].count;
        ls_put_number(answer, total);
        return LS_OK;
    }
    return ls_reject(answer, "expected `count KEY` or `total`");
}

/* The number of counts; for each its key, as a block, and the count, in the order of the keys. */
ls_failure ls_snapshot(void) {
    ls_write_u64(size);
    for (size_t i = 0; i < size; i++) {
        ls_write_block(entries[i].key);
        ls_write_u64(entries[i].count);
    }
    return NULL;
}

ls_failure ls_restore(const ls_header *header, ls_bytes config) {
    (void)header, (void)config;
    for (uint64_t left = ls_read_u64(); left > 0 && !ls_read_failed(); left--) {
        const ls_bytes key = ls_read_block(KEY_BYTES_MAX);
        const uint64_t count = ls_read_u64();
        if (size > 0 && ls_compare(entries[size - 1].key, key) >= 0)
            return ls_fail(LS_CORRUPT, "its keys are out of order");
        set(key, count);
        ls_free(key.data);
    }
    return NULL;
}

/* Lets tests compare replicas without a snapshot. */
LS_EXPORT_DIGEST;

ls_bytes ls_digest(void) {
    return (ls_bytes){(const uint8_t *)&digest, sizeof digest};
}
