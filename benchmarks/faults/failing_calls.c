// A library for LD_PRELOAD: counts the calls that change files below one folder, and makes those
// from the k-th on fail as on a full disk, or kills the process at the k-th. Python, Rust and C++
// all come by here, and removing files still works, as it does on a full disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long counted, first;  // first: the call from which on they fail; 0 = none does
static int kills;

void faults_arm(const char *path, long at, int kill_there) {
  snprintf(folder, sizeof folder, "%s", path);
  counted = 0;
  first = at;
  kills = kill_there;
}

long faults_counted(void) { return counted; }

static int fails_path(const char *path) {
  char whole[PATH_MAX];
  if (!folder[0] || !path) return 0;
  if (path[0] != '/' && getcwd(whole, sizeof whole - 1)) {
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    path = whole;
  }
  size_t length = strlen(folder);
  if (strncmp(path, folder, length) || (path[length] && path[length] != '/')) return 0;
  counted++;
  if (!first || counted < first) return 0;
  if (kills) kill(getpid(), SIGKILL);
  errno = ENOSPC;
  return 1;
}

static int fails_file(int file) {
  char link[64], path[PATH_MAX];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails_path(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FILE(result, name, file, types, values) \
  result name types { return fails_file(file) ? -1 : REAL(name) values; }
#define ON_PATH(name, path, types, values) \
  int name types { return fails_path(path) ? -1 : REAL(name) values; }

ON_FILE(ssize_t, write, f, (int f, const void *b, size_t n), (f, b, n))
ON_FILE(ssize_t, pwrite, f, (int f, const void *b, size_t n, off_t o), (f, b, n, o))
ON_FILE(ssize_t, pwrite64, f, (int f, const void *b, size_t n, off64_t o), (f, b, n, o))
ON_FILE(ssize_t, writev, f, (int f, const struct iovec *v, int n), (f, v, n))
ON_FILE(int, fsync, f, (int f), (f))
ON_FILE(int, fdatasync, f, (int f), (f))
ON_FILE(int, ftruncate, f, (int f, off_t n), (f, n))
ON_FILE(int, ftruncate64, f, (int f, off64_t n), (f, n))
ON_FILE(ssize_t, sendfile, f, (int f, int from, off_t *o, size_t n), (f, from, o, n))
ON_FILE(ssize_t, sendfile64, f, (int f, int from, off64_t *o, size_t n), (f, from, o, n))
ON_FILE(ssize_t, copy_file_range, to,
        (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned g), (from, a, to, b, n, g))
ON_PATH(mkdir, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, to, (const char *from, const char *to), (from, to))
ON_PATH(link, to, (const char *from, const char *to), (from, to))

#define OPEN(name)                                              \
  int name(const char *path, int flags, ...) {                  \
    va_list rest;                                               \
    va_start(rest, flags);                                      \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
    va_end(rest);                                               \
    return flags & O_CREAT && fails_path(path) ? -1 : REAL(name)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
