/* The other half of `lockstep.h`: memory, and the canonical ABI of the world in `wit/fsm.wit`.
 *
 *  - Needs no libc; brings the five functions that compilers expect.
 *  - Parameters are freed when their call ends. Results stay until the next call of their kind.
 *  - A snapshot takes one chunk of memory, however large the state. */
#include "lockstep.h"

#ifndef __wasm_bulk_memory__
#error "compile with -mbulk-memory: without it, memcpy would call itself"
#endif

/* ---- What compilers call. Weak, so that a libc may have its own. */

__attribute__((weak)) void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    return __builtin_memcpy(to, from, size); /* one instruction, for lack of a libc */
}

__attribute__((weak)) void *memmove(void *to, const void *from, size_t size) {
    return __builtin_memmove(to, from, size);
}

__attribute__((weak)) void *memset(void *to, int byte, size_t size) {
    return __builtin_memset(to, byte, size);
}

__attribute__((weak)) int memcmp(const void *a, const void *b, size_t size) {
    const uint8_t *left = a, *right = b;
    for (; size >= 8; size -= 8, left += 8, right += 8) {
        uint64_t l, r;
        __builtin_memcpy(&l, left, 8);
        __builtin_memcpy(&r, right, 8);
        if (l != r) break;
    }
    for (; size > 0; size--, left++, right++)
        if (*left != *right) return *left - *right;
    return 0;
}

__attribute__((weak)) size_t strlen(const char *text) {
    size_t size = 0;
    while (text[size] != 0) size++;
    return size;
}

/* ---- Memory.
 *
 * Blocks have one of some hundred sizes, four for each power of two. A freed block waits for the
 * next request of its size; it is neither split nor joined. At most a fifth of a block is unused. */

typedef struct block {
    uint32_t class;
    uint32_t padding;
    struct block *next; /* only while the block is free; else the caller's bytes begin here */
} block;

enum { HEADER = 8, CLASSES = 112, PAGE = 65536 };

static block *free_blocks[CLASSES];
extern uint8_t __heap_base;
static uint8_t *unused, *unused_end;

static uint32_t class_of(size_t size) {
    if (size <= 32) return 0;
    const uint32_t log = 31 - __builtin_clz((uint32_t)size - 1);
    return (log - 5) * 4 + (((uint32_t)size - 1) >> (log - 2) & 3) + 1;
}

static size_t size_of(uint32_t class) {
    return class == 0 ? 32 : (size_t)(5 + (class - 1) % 4) << ((class - 1) / 4 + 3);
}

void *ls_alloc(size_t size) {
    if (size > (size_t)1 << 31) ls_panic("more than 2 GiB at once");
    const uint32_t class = class_of(size + HEADER);
    block *found = free_blocks[class];
    if (found != NULL) {
        free_blocks[class] = found->next;
        return &found->next;
    }
    const size_t whole = size_of(class);
    if ((size_t)(unused_end - unused) < whole) {
        const size_t pages = (whole + PAGE - 1) / PAGE;
        const size_t before = __builtin_wasm_memory_grow(0, pages);
        if (before == (size_t)-1) __builtin_trap();
        if (unused_end != (uint8_t *)(before * PAGE)) unused = (uint8_t *)(before * PAGE);
        unused_end = (uint8_t *)((before + pages) * PAGE);
    }
    found = (block *)unused;
    unused += whole;
    found->class = class;
    return &found->next;
}

void ls_free(const void *memory) {
    if (memory == NULL) return;
    block *freed = (block *)((uintptr_t)memory - HEADER);
    freed->next = free_blocks[freed->class];
    free_blocks[freed->class] = freed;
}

void *ls_realloc(void *old, size_t size) {
    if (old == NULL) return ls_alloc(size);
    const block *header = (const block *)((uintptr_t)old - HEADER);
    const size_t space = size_of(header->class) - HEADER;
    if (size <= space) return old;
    void *moved = ls_alloc(size);
    memcpy(moved, old, space);
    ls_free(old);
    return moved;
}

/* What is freed when the call ends: each piece begins with the address of the one before it. */
static uint64_t *scratches;

void *ls_scratch(size_t size) {
    uint64_t *made = ls_alloc(sizeof *made + size);
    *made = (uintptr_t)scratches;
    scratches = made;
    return made + 1;
}

void ls_call_ends(void) {
    while (scratches != NULL) {
        uint64_t *ended = scratches;
        scratches = (uint64_t *)(uintptr_t)*ended;
        ls_free(ended);
    }
}

/* ---- Bytes. */

ls_bytes ls_copy(ls_bytes bytes) {
    return (ls_bytes){memcpy(ls_alloc(bytes.size), bytes.data, bytes.size), bytes.size};
}

ls_bytes ls_text(const char *text) {
    return (ls_bytes){(const uint8_t *)text, strlen(text)};
}

int ls_compare(ls_bytes a, ls_bytes b) {
    const int order = memcmp(a.data, b.data, a.size < b.size ? a.size : b.size);
    return order != 0 ? order : (a.size > b.size) - (a.size < b.size);
}

static void *extend(ls_buffer *buffer, size_t size) {
    const size_t needed = buffer->size + size;
    if (needed > buffer->space) {
        buffer->space = needed < 2 * buffer->space ? 2 * buffer->space : needed < 64 ? 64 : needed;
        buffer->data = ls_realloc(buffer->data, buffer->space);
    }
    void *extension = buffer->data + buffer->size;
    buffer->size = needed;
    return extension;
}

/* Makes a buffer empty. Memory that an unusual call needed is given back. */
static ls_buffer *empty(ls_buffer *buffer) {
    if (buffer->space > 1 << 20) {
        ls_free(buffer->data);
        *buffer = (ls_buffer){NULL, 0, 0};
    }
    buffer->size = 0;
    return buffer;
}

void ls_put(ls_buffer *to, ls_bytes bytes) {
    memcpy(extend(to, bytes.size), bytes.data, bytes.size);
}

void ls_put_text(ls_buffer *to, const char *text) {
    ls_put(to, ls_text(text));
}

void ls_put_number(ls_buffer *to, int64_t number) {
    uint8_t digits[20], *first = digits + sizeof digits;
    uint64_t left = number < 0 ? -(uint64_t)number : (uint64_t)number;
    do *--first = '0' + left % 10; while ((left /= 10) > 0);
    if (number < 0) *--first = '-';
    ls_put(to, (ls_bytes){first, digits + sizeof digits - first});
}

ls_verdict ls_reject(ls_buffer *answer, const char *why) {
    ls_put_text(answer, why);
    return LS_REJECTED;
}

/* ---- What the host offers. */

LS_IMPORT("host", "log")
void host_log(ls_level level, const void *target, size_t size, const void *message, size_t length);
LS_IMPORT("events", "emit")
void host_emit(const void *topic, size_t topic_size, const void *payload, size_t payload_size);
LS_IMPORT("snapshot-io", "write") void host_write(const void *chunk, size_t size);
LS_IMPORT("snapshot-io", "read") void host_read(uint32_t size_max, ls_bytes *chunk);

void ls_log(ls_level level, const char *target, const char *message) {
    host_log(level, target, ls_text(target).size, message, ls_text(message).size);
}

void ls_panic(const char *message) {
    ls_log(LS_ERROR, "panic", message);
    __builtin_trap();
}

void ls_emit(ls_bytes topic, ls_bytes payload) {
    host_emit(topic.data, topic.size, payload.data, payload.size);
}

/* ---- Snapshots. The chunk is that of the snapshot being taken, or of the one being restored. */

enum { CHUNK = 256 << 10 };

static uint8_t chunk[CHUNK] __attribute__((aligned(8)));
static size_t chunk_size, chunk_read;
static bool reading;
static ls_failure read_failure;

static void hand_on(void) {
    if (chunk_size > 0) host_write(chunk, chunk_size);
    chunk_size = 0;
}

void ls_write(ls_bytes bytes) {
    while (bytes.size > 0) {
        const size_t space = CHUNK - chunk_size, part = bytes.size < space ? bytes.size : space;
        memcpy(chunk + chunk_size, bytes.data, part);
        bytes.data += part, bytes.size -= part;
        if ((chunk_size += part) == CHUNK) hand_on();
    }
}

void ls_write_u64(uint64_t number) {
    ls_write((ls_bytes){(const uint8_t *)&number, 8});
}

void ls_write_block(ls_bytes block) {
    const uint32_t size = block.size;
    ls_write((ls_bytes){(const uint8_t *)&size, 4});
    ls_write(block);
}

/* Gets the next chunk if this one was read; says whether there is any. */
static bool refill(void) {
    if (chunk_read < chunk_size) return true;
    ls_bytes next;
    reading = true; /* tells `cabi_realloc` where the bytes shall be */
    host_read(CHUNK, &next);
    reading = false;
    chunk_size = next.size, chunk_read = 0;
    return chunk_size > 0;
}

void ls_read(void *into, size_t size) {
    uint8_t *to = into;
    while (size > 0 && read_failure == NULL) {
        if (!refill()) {
            read_failure = ls_fail(LS_CORRUPT, "it ends too early");
            break;
        }
        const size_t there = chunk_size - chunk_read, part = size < there ? size : there;
        memcpy(to, chunk + chunk_read, part);
        chunk_read += part, to += part, size -= part;
    }
    if (size > 0) memset(to, 0, size);
}

uint64_t ls_read_u64(void) {
    uint64_t number;
    ls_read(&number, 8);
    return number;
}

ls_bytes ls_read_block(size_t size_max) {
    uint32_t size;
    ls_read(&size, 4);
    if (size > size_max) {
        ls_buffer why = {NULL, 0, 0};
        ls_put_text(&why, "a block of ");
        ls_put_number(&why, size);
        ls_put_text(&why, " bytes exceeds the limit of ");
        ls_put_number(&why, size_max);
        ls_put(&why, (ls_bytes){(const uint8_t *)"", 1});
        read_failure = ls_fail(LS_CORRUPT, (const char *)why.data);
        ls_free(why.data);
        size = 0;
    }
    uint8_t *data = ls_alloc(size);
    ls_read(data, size);
    return (ls_bytes){data, size};
}

bool ls_read_failed(void) {
    return read_failure != NULL;
}

/* ---- The exports. A result that has several words is written to memory, laid out as the canonical
 * ABI says, and its address is returned. `ls_bytes` is laid out like a list and like a string. */

#define CONTEXT uint64_t index, uint64_t time_ms, uint64_t seed0, uint64_t seed1
#define CONTEXT_AT(position) {index, time_ms, {seed0, seed1}, position}
#define EXPORT(function) LS_EXPORT("state-machine", function)

/* `result<_, failure>`. */
struct ls_failed {
    uint32_t failed;
    uint32_t kind;
    union {
        uint32_t format;
        ls_bytes why;
    };
};

typedef struct {
    uint32_t position;
    uint64_t bytes;
} omission;

/* `outcomes`, and the columns in which it is gathered: kept from call to call. */
static ls_buffer ends, data, rejected, omitted;
typedef struct {
    ls_bytes ends, data, rejected, omitted;
} outcomes;

enum { ANSWER_BYTES_MAX = 65536 };

static ls_bytes list_of(const ls_buffer *buffer, size_t element_size) {
    return (ls_bytes){buffer->data, buffer->size / element_size};
}

ls_failure ls_fail(ls_failure_kind kind, const char *why) {
    static struct ls_failed failure;
    static ls_buffer text; /* a copy, because the reason may be gone when the call ends */
    ls_put_text(empty(&text), why);
    failure = (struct ls_failed){.failed = 1, .kind = kind, .why = list_of(&text, 1)};
    return &failure;
}

static ls_failure finished(ls_failure failure) {
    static const struct ls_failed none;
    ls_call_ends();
    return failure == NULL ? &none : failure;
}

/* Where the host puts what it hands over; freed when the call ends. */
__attribute__((export_name("cabi_realloc")))
void *ls_cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)align; /* all memory is aligned to 8 bytes, and nothing needs more */
    if (reading && size <= CHUNK) return chunk;
    void *made = ls_scratch(size);
    return old == NULL ? made : memcpy(made, old, old_size < size ? old_size : size);
}

EXPORT("describe") const void *ls_export_describe(void) {
    static struct {
        ls_bytes name, version;
        uint32_t snapshot_format, oldest_readable_format;
    } info;
    info.name = ls_text(ls_about.name);
    info.version = ls_text(ls_about.version);
    info.snapshot_format = ls_about.snapshot_format;
    info.oldest_readable_format = ls_about.oldest_readable_format;
    return &info;
}

EXPORT("init") ls_failure ls_export_init(CONTEXT, const uint8_t *config, size_t size) {
    const ls_context ctx = CONTEXT_AT(0);
    return finished(ls_init(&ctx, (ls_bytes){config, size}));
}

EXPORT("apply") const outcomes *ls_export_apply(CONTEXT, const uint32_t *command_ends, size_t count,
                                                const uint8_t *commands, size_t size) {
    (void)size; /* is the last end */
    empty(&ends), empty(&data), empty(&rejected), empty(&omitted);
    uint32_t begin = 0;
    for (uint32_t position = 0; position < count; position++) {
        const ls_context ctx = CONTEXT_AT(position);
        const ls_bytes command = {commands + begin, command_ends[position] - begin};
        begin = command_ends[position];

        const size_t before = data.size;
        if (ls_apply(&ctx, command, &data) == LS_REJECTED)
            *(uint32_t *)extend(&rejected, sizeof(uint32_t)) = position;
        if (data.size - before > ANSWER_BYTES_MAX) {
            const omission long_answer = {position, data.size - before};
            *(omission *)extend(&omitted, sizeof(omission)) = long_answer;
            data.size = before;
        }
        *(uint32_t *)extend(&ends, sizeof(uint32_t)) = data.size;
    }
    ls_call_ends();

    static outcomes result;
    result.ends = list_of(&ends, sizeof(uint32_t));
    result.data = list_of(&data, 1);
    result.rejected = list_of(&rejected, sizeof(uint32_t));
    result.omitted = list_of(&omitted, sizeof(omission));
    return &result;
}

/* `result<list<u8>, list<u8>>`. */
EXPORT("query") const void *ls_export_query(CONTEXT, const uint8_t *request, size_t size) {
    static ls_buffer answer;
    static struct {
        uint32_t verdict;
        ls_bytes answer;
    } result;
    const ls_context ctx = CONTEXT_AT(0);
    result.verdict = ls_query(&ctx, (ls_bytes){request, size}, empty(&answer));
    result.answer = list_of(&answer, 1);
    ls_call_ends();
    return &result;
}

EXPORT("snapshot") ls_failure ls_export_snapshot(void) {
    chunk_size = 0;
    const ls_failure failure = ls_snapshot();
    hand_on();
    return finished(failure);
}

EXPORT("restore")
ls_failure ls_export_restore(const uint8_t *writer_name, size_t writer_name_size,
                             const uint8_t *writer_version, size_t writer_version_size,
                             uint32_t format, uint64_t index, uint64_t time_ms,
                             const uint8_t *config, size_t config_size) {
    if (format < ls_about.oldest_readable_format || format > ls_about.snapshot_format) {
        static struct ls_failed unsupported = {.failed = 1, .kind = LS_UNSUPPORTED_FORMAT};
        unsupported.format = format;
        return finished(&unsupported);
    }
    const ls_header header = {
        {writer_name, writer_name_size}, {writer_version, writer_version_size},
        format, index, time_ms,
    };
    ls_failure failure = ls_restore(&header, (ls_bytes){config, config_size});
    if (read_failure != NULL) failure = read_failure;
    if (failure == NULL && refill())
        failure = ls_fail(LS_CORRUPT, "bytes are left over at its end");
    return finished(failure);
}

const ls_bytes *ls_test_bytes(void (*make)(uint64_t, ls_buffer *), uint64_t number) {
    static ls_buffer made;
    static ls_bytes result;
    make(number, empty(&made));
    result = list_of(&made, 1);
    ls_call_ends();
    return &result;
}
