/* A disk that is watched and may fail: preloaded, it stands between a process and the C library for all files below
 * SHIM_ROOT. What reaches the disk is appended to SHIM_TRACE in the order in which it happened, and SHIM_CONTROL, a
 * file that the test maps too, says which calls fail. Everything else passes by untouched.
 *
 * Its rule: it knows nothing of the store; what a trace means is decided by whoever reads it (power.py).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536
#define NAME 64
#define RULES 8
#define REAL(name) ((__typeof__(&name))real(#name))

enum { OPEN = 1, CLOSE, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MARK, READ, SYNC_FAILED, START, ALLOCATE };

struct rule { /* as packed by shim.py */
    int32_t calls;   /* one bit for each kind above; 0: not in force */
    int32_t error;   /* the errno that they fail with */
    int32_t after;   /* how many of them pass first */
    int32_t times;   /* how many fail then; negative: all */
    int32_t hits;    /* how many did */
    char name[NAME]; /* a pattern for the file's name */
    char during[NAME]; /* only while a file of this name is there; empty: always */
};

struct head { /* of one event in the trace, followed by the name and the data */
    uint8_t kind;
    uint8_t created;
    uint16_t name;
    uint32_t data;
    int32_t fd;
    int32_t unused;
    int64_t number;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[4096], names[FILES][NAME];
static uint8_t watched[FILES];
static size_t root_size;
static int trace = -1;
static struct rule *rules;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void record(int kind, int fd, int64_t number, const char *name, const void *data, size_t size, int created) {
    if (trace < 0) return;
    struct head head = {kind, created, name ? strlen(name) : 0, size, fd, 0, number};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)name, head.name}, {(void *)data, size}};
    size_t whole = sizeof head + head.name + size;
    /* A trace with a hole would prove anything. */
    if (syscall(SYS_writev, trace, parts, 3) != (long)whole) abort();
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("SHIM_ROOT"), *control = getenv("SHIM_CONTROL"), *file = getenv("SHIM_TRACE");
    if (!where) return;
    strncpy(root, where, sizeof root - 1);
    root_size = strlen(root);
    if (control) {
        int fd = syscall(SYS_openat, AT_FDCWD, control, O_RDWR | O_CLOEXEC, 0);
        if (fd < 0) abort();
        rules = mmap(NULL, RULES * sizeof *rules, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (rules == MAP_FAILED) abort();
        syscall(SYS_close, fd);
    }
    if (file) {
        int fd = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd < 0) abort();
        trace = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
        syscall(SYS_close, fd);
        record(START, 0, 0, NULL, NULL, 0, 0);
    }
}

/* The name below the root, "" for the root itself, NULL for what is none of ours. */
static const char *ours(const char *path) {
    if (!root_size || !path || strncmp(path, root, root_size)) return NULL;
    if (!path[root_size]) return path + root_size;
    return path[root_size] == '/' && strlen(path + root_size + 1) < NAME ? path + root_size + 1 : NULL;
}

static const char *opened(int fd) { return fd >= 0 && fd < FILES && watched[fd] ? names[fd] : NULL; }

static int fails(int kind, const char *name) {
    for (struct rule *rule = rules; rule && rule < rules + RULES; rule++) {
        if (!(rule->calls & 1 << kind) || fnmatch(rule->name, name, 0)) continue;
        if (rule->during[0]) {
            char path[sizeof root + NAME];
            struct stat found;
            strcpy(path, root);
            strcat(strcat(path, "/"), rule->during);
            if (stat(path, &found)) continue;
        }
        if (__sync_fetch_and_sub(&rule->after, 1) > 0) continue;
        if (rule->times >= 0 && __sync_fetch_and_sub(&rule->times, 1) <= 0) {
            rule->times = 0;
            continue;
        }
        __sync_fetch_and_add(&rule->hits, 1);
        errno = rule->error;
        return 1;
    }
    return 0;
}

/* What a test says itself, in its place among the writes. */
void shim_mark(const void *data, size_t size) {
    pthread_mutex_lock(&lock);
    record(MARK, 0, 0, NULL, data, size, 0);
    pthread_mutex_unlock(&lock);
}

static int open_as(int (*really)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    const char *name = ours(path);
    if (!name) return really(path, flags, mode);
    if (fails(OPEN, name)) return -1;
    pthread_mutex_lock(&lock);
    struct stat found;
    int created = flags & O_CREAT && stat(path, &found);
    int fd = really(path, flags, mode);
    if (fd >= 0 && fd < FILES) {
        strcpy(names[fd], name);
        watched[fd] = 1;
        record(OPEN, fd, flags & O_TRUNC ? 1 : 0, name, NULL, 0, created);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPENS(function)                                                                                                \
    int function(const char *path, int flags, ...) {                                                                   \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                      \
        va_end(rest);                                                                                                  \
        return open_as(REAL(function), path, flags, mode);                                                             \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(function, plain)                                                                                      \
    int function(int at, const char *path, int flags, ...) {                                                           \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                      \
        va_end(rest);                                                                                                  \
        if (ours(path)) return open_as(REAL(plain), path, flags, mode);                                                \
        return REAL(function)(at, path, flags, mode);                                                                  \
    }
OPENS_AT(openat, open)
OPENS_AT(openat64, open64)

int close(int fd) {
    if (!opened(fd)) return REAL(close)(fd);
    pthread_mutex_lock(&lock);
    watched[fd] = 0;
    record(CLOSE, fd, 0, NULL, NULL, 0, 0);
    int result = REAL(close)(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

#define PWRITES(function)                                                                                              \
    ssize_t function(int fd, const void *data, size_t size, off_t offset) {                                            \
        const char *name = opened(fd);                                                                                 \
        if (!name) return REAL(function)(fd, data, size, offset);                                                      \
        if (fails(WRITE, name)) return -1;                                                                             \
        pthread_mutex_lock(&lock);                                                                                     \
        ssize_t written = REAL(function)(fd, data, size, offset);                                                      \
        if (written > 0) record(WRITE, fd, offset, NULL, data, written, 0);                                            \
        pthread_mutex_unlock(&lock);                                                                                   \
        return written;                                                                                                \
    }
PWRITES(pwrite)
PWRITES(pwrite64)

ssize_t write(int fd, const void *data, size_t size) {
    const char *name = opened(fd);
    if (!name) return REAL(write)(fd, data, size);
    if (fails(WRITE, name)) return -1;
    pthread_mutex_lock(&lock);
    off_t offset = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    ssize_t written = REAL(write)(fd, data, size);
    if (written > 0) record(WRITE, fd, offset, NULL, data, written, 0);
    pthread_mutex_unlock(&lock);
    return written;
}

#define PREADS(function)                                                                                               \
    ssize_t function(int fd, void *data, size_t size, off_t offset) {                                                  \
        const char *name = opened(fd);                                                                                 \
        return name && fails(READ, name) ? -1 : REAL(function)(fd, data, size, offset);                                \
    }
PREADS(pread)
PREADS(pread64)

ssize_t read(int fd, void *data, size_t size) {
    const char *name = opened(fd);
    return name && fails(READ, name) ? -1 : REAL(read)(fd, data, size);
}

#define TRUNCATES(function)                                                                                            \
    int function(int fd, off_t size) {                                                                                 \
        const char *name = opened(fd);                                                                                 \
        if (!name) return REAL(function)(fd, size);                                                                    \
        if (fails(TRUNCATE, name)) return -1;                                                                          \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = REAL(function)(fd, size);                                                                         \
        if (!result) record(TRUNCATE, fd, size, NULL, NULL, 0, 0);                                                     \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }
TRUNCATES(ftruncate)
TRUNCATES(ftruncate64)

#define ALLOCATES(function)                                                                                            \
    int function(int fd, off_t offset, off_t size) {                                                                   \
        const char *name = opened(fd);                                                                                 \
        return name && fails(ALLOCATE, name) ? errno : REAL(function)(fd, offset, size);                               \
    }
ALLOCATES(posix_fallocate)
ALLOCATES(posix_fallocate64)

/* A failed fsync leaves the pages unwritten and forgets that they were dirty, as Linux does. */
#define SYNCS(function)                                                                                                \
    int function(int fd) {                                                                                             \
        const char *name = opened(fd);                                                                                 \
        if (!name) return REAL(function)(fd);                                                                          \
        int failed = fails(SYNC, name), error = errno;                                                                 \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = failed ? -1 : REAL(function)(fd);                                                                 \
        record(result ? SYNC_FAILED : SYNC, fd, 0, NULL, NULL, 0, 0);                                                  \
        pthread_mutex_unlock(&lock);                                                                                   \
        if (failed) errno = error;                                                                                     \
        return result;                                                                                                 \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int rename(const char *from, const char *to) {
    const char *old = ours(from), *new = ours(to);
    if (!old || !new) return REAL(rename)(from, to);
    if (fails(RENAME, new)) return -1;
    pthread_mutex_lock(&lock);
    int result = REAL(rename)(from, to);
    if (!result) record(RENAME, 0, 0, old, new, strlen(new), 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) {
    const char *name = ours(path);
    if (!name) return REAL(unlink)(path);
    if (fails(UNLINK, name)) return -1;
    pthread_mutex_lock(&lock);
    int result = REAL(unlink)(path);
    if (!result) record(UNLINK, 0, 0, name, NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

/* A process that ends so leaves no call half done, and none that the trace does not have. */
void _exit(int status) {
    pthread_mutex_lock(&lock);
    ((void (*)(int))real("_exit"))(status);
    __builtin_unreachable();
}
