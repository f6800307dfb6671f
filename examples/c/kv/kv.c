/* A replicated key-value store with text commands: `examples/kv`, in C. It has the same commands,
 * answers and snapshots, byte for byte.
 *
 * The pairs are in a skip list: a list in the order of the keys, with express lanes above it. A
 * node's height is a function of its key, so the same pairs make the same list on every replica,
 * restored or not. */
#include "lockstep.h"

const ls_info ls_about = {"kv", "0.1.0", .snapshot_format = 1, .oldest_readable_format = 1};

enum {
    KEY_BYTES_MAX = 1024,
    VALUE_BYTES_MAX = 256 << 20, /* in a snapshot; only a damaged length exceeds it */
    HEIGHT_MAX = 16,
};

/* ---- The list. */

typedef struct node {
    ls_bytes key, value;
    struct node *next[]; /* as many as the node is high */
} node;

static node *first[HEIGHT_MAX];
static uint64_t count;

/* The places, one on each level, that point to the first node whose key is not below `key`. */
typedef struct {
    node **at[HEIGHT_MAX];
} path;

static path find(ls_bytes key) {
    path found;
    node **lane = first;
    for (int level = HEIGHT_MAX - 1; level >= 0; level--) {
        while (lane[level] != NULL && ls_compare(lane[level]->key, key) < 0)
            lane = lane[level]->next;
        found.at[level] = &lane[level];
    }
    return found;
}

static node *node_at(const path *place, ls_bytes key) {
    node *there = *place->at[0];
    return there != NULL && ls_compare(there->key, key) == 0 ? there : NULL;
}

/* One level, and one more for each two zero bits of a hash. */
static int height_of(ls_bytes key) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < key.size; i++) hash = (hash ^ key.data[i]) * 0x100000001b3;
    return 1 + __builtin_ctzll(hash * 0x9e3779b97f4a7c15 >> 32 | 1ull << 30) / 2;
}

/* Puts a new node at the place that `find` found. Key and value now belong to the list. */
static void insert(const path *place, ls_bytes key, ls_bytes value) {
    const int height = height_of(key);
    node *made = ls_alloc(sizeof *made + height * sizeof *made->next);
    made->key = key, made->value = value;
    for (int level = 0; level < height; level++) {
        made->next[level] = *place->at[level];
        *place->at[level] = made;
    }
    count++;
}

static void delete(const path *place, node *gone) {
    for (int level = 0; level < HEIGHT_MAX && *place->at[level] == gone; level++)
        *place->at[level] = gone->next[level];
    ls_free(gone->key.data);
    ls_free(gone->value.data);
    ls_free(gone);
    count--;
}

/* Stores a value and answers with the previous one. */
static void set(const path *place, ls_bytes key, ls_bytes value, ls_buffer *answer) {
    node *there = node_at(place, key);
    if (there == NULL) {
        insert(place, ls_copy(key), ls_copy(value));
        return;
    }
    ls_put(answer, there->value);
    ls_free(there->value.data);
    there->value = ls_copy(value);
}

/* ---- Text. */

/* Takes the first word off the text, with the space that follows it; says whether one does. */
static bool take_word(ls_bytes *text, ls_bytes *word) {
    size_t length = 0;
    while (length < text->size && text->data[length] != ' ') length++;
    *word = (ls_bytes){text->data, length};
    const bool more = length < text->size;
    text->data += length + more, text->size -= length + more;
    return more;
}

static bool is(ls_bytes word, const char *verb) {
    return ls_compare(word, ls_text(verb)) == 0;
}

/* Refuses, and says why, if the key is not valid. */
static bool valid(ls_bytes key, ls_buffer *answer) {
    if (key.size == 0) {
        ls_put_text(answer, "a key has at least one byte");
        return false;
    }
    if (key.size > KEY_BYTES_MAX) {
        ls_put_text(answer, "a key has ");
        ls_put_number(answer, key.size);
        ls_put_text(answer, " bytes, the limit is 1024");
        return false;
    }
    for (size_t i = 0; i < key.size; i++) {
        if (key.data[i] <= ' ' || key.data[i] == 127) {
            ls_put_text(answer, "a key has no spaces and no control characters");
            return false;
        }
    }
    return true;
}

/* Refuses a verb. Quotes only the beginning, for it may be megabytes of anything. */
static ls_verdict unknown(ls_bytes verb, const char *expected, ls_buffer *answer) {
    const size_t shown = verb.size < 32 ? verb.size : 32;
    ls_put_text(answer, "unknown `");
    for (size_t i = 0; i < shown; i++) {
        const uint8_t byte = verb.data[i], *digits = (const uint8_t *)"0123456789abcdef";
        const uint8_t hex[] = {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
        switch (byte) {
        case '\t': ls_put_text(answer, "\\t"); break;
        case '\r': ls_put_text(answer, "\\r"); break;
        case '\n': ls_put_text(answer, "\\n"); break;
        case '\'': ls_put_text(answer, "\\'"); break;
        case '"': ls_put_text(answer, "\\\""); break;
        case '\\': ls_put_text(answer, "\\\\"); break;
        default:
            if (byte >= ' ' && byte < 127) ls_put(answer, (ls_bytes){&byte, 1});
            else ls_put(answer, (ls_bytes){hex, sizeof hex});
        }
    }
    ls_put_text(answer, shown < verb.size ? "…`; expected " : "`; expected ");
    return ls_reject(answer, expected);
}

/* Reads a decimal number, with or without a sign, whose magnitude is at most `max`. */
static bool number_of(ls_bytes text, uint64_t max, bool *negative, uint64_t *magnitude) {
    const bool sign = text.size > 0 && (text.data[0] == '-' || text.data[0] == '+');
    *negative = sign && text.data[0] == '-';
    *magnitude = 0;
    for (size_t i = sign; i < text.size; i++) {
        const uint64_t digit = (uint64_t)text.data[i] - '0';
        if (digit > 9 || *magnitude > (max - digit) / 10) return false;
        *magnitude = 10 * *magnitude + digit;
    }
    return text.size > sign;
}

/* ---- The state machine. */

ls_failure ls_init(const ls_context *ctx, ls_bytes config) {
    (void)ctx;
    return config.size == 0 ? NULL : ls_fail(LS_INVALID_CONFIG, "kv has nothing to configure");
}

static ls_verdict cas(ls_bytes key, ls_bytes old, ls_bytes new, ls_buffer *answer) {
    const path place = find(key);
    const node *there = node_at(&place, key);
    if (there == NULL && old.size > 0) return ls_reject(answer, "there is no such key");
    if (there != NULL && ls_compare(there->value, old) != 0)
        return ls_reject(answer, "the key holds another value");
    set(&place, key, new, answer);
    return LS_OK;
}

static ls_verdict incr(ls_bytes key, ls_buffer *answer) {
    const path place = find(key);
    const node *there = node_at(&place, key);
    uint64_t magnitude = 0;
    bool negative = false;
    if (there != NULL && (!number_of(there->value, 1ull << 63, &negative, &magnitude)
                          || (!negative && magnitude > INT64_MAX)))
        return ls_reject(answer, "the key does not hold a 64-bit whole number");
    if (!negative && magnitude == INT64_MAX)
        return ls_reject(answer, "the number would exceed 64 bits");
    ls_buffer previous = {NULL, 0, 0};
    const size_t before = answer->size;
    ls_put_number(answer, (int64_t)(negative ? -magnitude : magnitude) + 1);
    set(&place, key, (ls_bytes){answer->data + before, answer->size - before}, &previous);
    ls_free(previous.data);
    return LS_OK;
}

ls_verdict ls_apply(const ls_context *ctx, ls_bytes command, ls_buffer *answer) {
    (void)ctx;
    ls_bytes verb, key, old;
    const bool more = take_word(&command, &verb);
    if (is(verb, "set")) {
        if (!more || !take_word(&command, &key)) return ls_reject(answer, "expected `set K V`");
        if (!valid(key, answer)) return LS_REJECTED;
        const path place = find(key);
        set(&place, key, command, answer);
        return LS_OK;
    }
    if (is(verb, "del")) {
        if (!more) return ls_reject(answer, "expected `del K`");
        if (!valid(command, answer)) return LS_REJECTED;
        const path place = find(command);
        node *there = node_at(&place, command);
        if (there == NULL) return LS_OK;
        ls_put(answer, there->value);
        delete(&place, there);
        return LS_OK;
    }
    if (is(verb, "cas")) {
        if (!more || !take_word(&command, &key) || !take_word(&command, &old))
            return ls_reject(answer, "expected `cas K OLD NEW`");
        return valid(key, answer) ? cas(key, old, command, answer) : LS_REJECTED;
    }
    if (is(verb, "incr")) {
        if (!more) return ls_reject(answer, "expected `incr K`");
        return valid(command, answer) ? incr(command, answer) : LS_REJECTED;
    }
    return unknown(verb, "`set K V`, `del K`, `cas K OLD NEW` or `incr K`", answer);
}

static void scan(ls_bytes prefix, uint64_t limit, ls_buffer *answer) {
    const node *there = *find(prefix).at[0];
    for (; there != NULL && limit > 0; there = there->next[0], limit--) {
        if (there->key.size < prefix.size) return;
        if (ls_compare((ls_bytes){there->key.data, prefix.size}, prefix) != 0) return;
        ls_put(answer, there->key);
        ls_put_text(answer, " ");
        ls_bytes rest = there->value;
        for (size_t i = 0; i < rest.size;) {
            const uint8_t byte = rest.data[i];
            if (byte != '\\' && byte != '\n') {
                i++;
                continue;
            }
            ls_put(answer, (ls_bytes){rest.data, i});
            ls_put_text(answer, byte == '\n' ? "\\n" : "\\\\");
            rest.data += i + 1, rest.size -= i + 1, i = 0;
        }
        ls_put(answer, rest);
        ls_put_text(answer, "\n");
    }
}

ls_verdict ls_query(const ls_context *ctx, ls_bytes request, ls_buffer *answer) {
    (void)ctx;
    ls_bytes verb, prefix;
    const bool more = take_word(&request, &verb);
    if (is(verb, "get")) {
        if (!more) return ls_reject(answer, "expected `get K`");
        if (!valid(request, answer)) return LS_REJECTED;
        const path place = find(request);
        const node *there = node_at(&place, request);
        if (there == NULL) {
            ls_put_text(answer, "no key `");
            ls_put(answer, request);
            return ls_reject(answer, "`");
        }
        ls_put(answer, there->value);
        return LS_OK;
    }
    if (is(verb, "scan")) {
        bool negative;
        uint64_t limit;
        if (!more || !take_word(&request, &prefix)
            || !number_of(request, UINT32_MAX, &negative, &limit) || request.data[0] == '-')
            return ls_reject(answer, "expected `scan PREFIX LIMIT`, LIMIT a number");
        scan(prefix, limit, answer);
        return LS_OK;
    }
    if (is(verb, "len")) {
        if (more) return ls_reject(answer, "expected `len` and nothing after it");
        ls_put_number(answer, count);
        return LS_OK;
    }
    return unknown(verb, "`get K`, `scan PREFIX LIMIT` or `len`", answer);
}

ls_failure ls_snapshot(void) {
    ls_write_u64(count);
    for (const node *there = first[0]; there != NULL; there = there->next[0]) {
        ls_write_block(there->key);
        ls_write_block(there->value);
    }
    return NULL;
}

ls_failure ls_restore(const ls_header *header, ls_bytes config) {
    (void)header, (void)config;
    ls_bytes last = {NULL, 0};
    for (uint64_t left = ls_read_u64(); left > 0; left--) {
        const ls_bytes key = ls_read_block(KEY_BYTES_MAX);
        const ls_bytes value = ls_read_block(VALUE_BYTES_MAX);
        if (ls_read_failed()) break;
        if (count > 0 && ls_compare(last, key) >= 0)
            return ls_fail(LS_CORRUPT, "its keys are out of order");
        const path place = find(key);
        insert(&place, key, value);
        last = key;
    }
    return NULL;
}
