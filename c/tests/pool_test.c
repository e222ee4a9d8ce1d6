/* Tests of ../pool.c. Prints a line per test and exits 0 or 1. `pool_test bench` measures launch and join instead;
   `pool_test nofork` is for qemu-user, which cannot fork a program with threads.
     cc -std=c11 -O2 -pthread pool_test.c ../pool.c -lm -o pool_test && ./pool_test */
#if !defined __APPLE__
#define _DEFAULT_SOURCE
#endif
#include "../pool.h"

#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined __x86_64__
#include <immintrin.h>
#endif

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED 1
#elif defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { MOST = 4096, ALIVE = 0x600D, DEAD = 0xDEAD };

/* A job whose tasks check that it is still alive. `runs` are not atomic: the pool must order them before the return. */
typedef struct {
    int state;
    unsigned runs[MOST];
    atomic_uint strays;
    pthread_t caller;
    long caller_delay_us, worker_delay_us;
} job;

static void sleep_us(long us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&t, &t) && errno == EINTR) continue;
}

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void visit(void *context, size_t index) {
    job *j = context;
    if (j->state != ALIVE || index >= MOST) {
        atomic_fetch_add(&j->strays, 1);
        return;
    }
    const long delay = pthread_equal(pthread_self(), j->caller) ? j->caller_delay_us : j->worker_delay_us;
    if (delay) sleep_us(delay);
    j->runs[index]++;
}

static void begin(job *j) {
    memset(j, 0, sizeof *j);
    j->state = ALIVE;
    j->caller = pthread_self();
}

static bool end(job *j, size_t count) {
    bool good = atomic_load(&j->strays) == 0;
    for (size_t i = 0; i < MOST; i++) good &= j->runs[i] == (i < count);
    j->state = DEAD;
    return good;
}

static bool run_one(size_t count, unsigned threads) {
    job j;
    begin(&j);
    fsm_pool_run(visit, &j, count, threads);
    return end(&j, count);
}

static bool child_is_good(pid_t pid) {
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* A child that hangs dies of SIGALRM. */
static void in_child(bool good) { _exit(good ? 0 : 1); }

static int threads_of_process(void) { /* -1 where /proc does not say, or a sanitizer has threads of its own */
    if (SANITIZED) return -1;
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    int n = -1;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Threads: %d", &n) == 1) break;
    if (f) fclose(f);
    return n;
}

static bool test_lazy(void) {
    const int before = threads_of_process();
    bool good = run_one(0, 9) && run_one(1, 9) && run_one(100, 1) && run_one(100, 0) && threads_of_process() == before;
    good &= run_one(2, 9) && (before < 0 || threads_of_process() == before + 1); /* no more workers than chunks */
    good &= run_one(100, 4) && (before < 0 || threads_of_process() == before + 3);
    return good && run_one(100, 2) && (before < 0 || threads_of_process() == before + 3);
}

static bool test_each_index_once(void) {
    for (size_t count = 0; count <= 200; count++)
        for (unsigned threads = 1; threads <= 9; threads++)
            if (!run_one(count, threads)) return false;
    return true;
}

static bool test_many_threads(void) {
    return run_one(MOST, 300) && run_one(MOST, 256) && run_one(MOST, (unsigned)-1) && run_one(MOST, 2);
}

/* Only `threads` threads may take part, however many workers there are; and with slow chunks all of them do. */
typedef struct {
    pthread_t seen[64];
    unsigned n;
    pthread_mutex_t lock;
} crowd;
static void join_crowd(void *context, size_t index) {
    crowd *c = context;
    (void)index;
    sleep_us(1000);
    pthread_mutex_lock(&c->lock);
    unsigned i = 0;
    while (i < c->n && !pthread_equal(c->seen[i], pthread_self())) i++;
    if (i == c->n && i < 64) c->seen[c->n++] = pthread_self();
    pthread_mutex_unlock(&c->lock);
}
static bool test_thread_limit(void) {
    bool good = true;
    for (unsigned step = 1; step < 18; step++) { /* up, and down again with more workers than wanted */
        const unsigned threads = step < 10 ? step : 18 - step;
        crowd c = {.n = 0, .lock = PTHREAD_MUTEX_INITIALIZER};
        if (step % 2)
            sleep_us(1000);
        else if (!run_one(100, 9))
            good = false; /* other workers spin, or are on their way from sleep */
        fsm_pool_run(join_crowd, &c, 100, threads);
        if (c.n != threads) {
            printf("  %u threads took part, wanted %u\n", c.n, threads);
            good = false;
        }
    }
    return good;
}

static void nest(void *context, size_t index) {
    (void)index;
    if (!run_one(50, 4)) atomic_fetch_add((atomic_uint *)context, 1);
}
static bool test_nested(void) {
    atomic_uint bad = 0;
    for (int i = 0; i < 200; i++) fsm_pool_run(nest, &bad, 20, 4);
    return atomic_load(&bad) == 0;
}

static atomic_bool stop;
static void *call_until_stopped(void *seed) {
    size_t n = (uintptr_t)seed;
    while (!atomic_load(&stop)) {
        n = n * 37 % 211;
        if (!run_one(n, (unsigned)(n % 9 + 1))) return seed;
        n++;
    }
    return NULL;
}
static void start_callers(pthread_t *callers, size_t n) {
    atomic_store(&stop, false);
    for (size_t i = 0; i < n; i++)
        if (pthread_create(&callers[i], NULL, call_until_stopped, (void *)(i + 1))) abort();
}
static bool stop_callers(pthread_t *callers, size_t n) {
    bool good = true;
    atomic_store(&stop, true);
    for (size_t i = 0; i < n; i++) {
        void *failed;
        pthread_join(callers[i], &failed);
        good &= failed == NULL;
    }
    return good;
}
static bool test_concurrent_callers(void) {
    pthread_t callers[8];
    start_callers(callers, 8);
    sleep_us(1000000);
    return stop_callers(callers, 8);
}

/* More hands than CPUs, so that workers lose the CPU at every point of the code, and jobs that end at once: a stale worker
   would find a dead job on the stack. */
static void *hog(void *unused) {
    while (!atomic_load(&stop)) continue;
    return unused;
}
static bool test_tiny_jobs_under_load(void) {
    pthread_t hogs[3];
    bool good = true;
    atomic_store(&stop, false);
    for (int i = 0; i < 3; i++)
        if (pthread_create(&hogs[i], NULL, hog, NULL)) abort();
    const double start = now_us();
    for (unsigned i = 0; good && now_us() - start < 1e6; i++) good = run_one(i % 7, 2 + i % 5);
    atomic_store(&stop, true);
    for (int i = 0; i < 3; i++) pthread_join(hogs[i], NULL);
    return good;
}

static void add(void *context, size_t index) { atomic_fetch_add((atomic_size_t *)context, index + 1); }
static bool test_tiny_jobs(void) {
    for (size_t i = 0; i < 100000; i++) {
        atomic_size_t sum = 0;
        fsm_pool_run(add, &sum, 2 + i % 3, 2 + (unsigned)i % 3);
        const size_t n = 2 + i % 3;
        if (atomic_load(&sum) != n * (n + 1) / 2) return false;
    }
    return true;
}

/* A slow worker costs the chunk it has claimed, no more: the caller does the rest meanwhile. */
static bool test_slow_worker(void) {
    job j;
    begin(&j);
    j.worker_delay_us = 100000;
    j.caller_delay_us = 100;
    const double start = now_us();
    fsm_pool_run(visit, &j, 100, 2);
    const double took = now_us() - start;
    bool good = end(&j, 100) && took < 1e6;
    begin(&j);
    j.caller_delay_us = 20000; /* and a slow caller leaves it all to the workers */
    fsm_pool_run(visit, &j, 1000, 3);
    return good & end(&j, 1000);
}

/* Sleeping and spinning workers, at every phase of falling asleep. */
static bool test_pauses(void) {
    for (long i = 0; i < 400; i++) {
        if (!run_one(8, 3)) return false;
        const double until = now_us() + (double)(i % 100);
        while (now_us() < until) continue;
    }
    return true;
}

static bool test_fork_after_use(void) {
    for (int i = 0; i < 200; i++) {
        if (!run_one(100, 4)) return false;
        const pid_t pid = fork();
        if (pid == 0) {
            alarm(60);
            bool good = run_one(100, 4) && (threads_of_process() == 4 || threads_of_process() < 0);
            if (i % 10 == 0) { /* nested */
                const pid_t grandchild = fork();
                if (grandchild == 0) in_child(run_one(100, 3));
                good &= child_is_good(grandchild);
            }
            in_child(good && run_one(50, 2));
        }
        if (pid < 0 || !child_is_good(pid)) return false;
    }
    return true;
}

static bool test_fork_while_inside(void) {
    pthread_t callers[2];
    bool good = true;
    start_callers(callers, 2);
    for (int i = 0; i < 200 && good; i++) {
        const pid_t pid = fork();
        if (pid == 0) {
            alarm(60);
            const bool works = run_one(100, 4) && run_one(7, 2);
            in_child(works && (threads_of_process() == 4 || threads_of_process() < 0));
        }
        good = pid > 0 && child_is_good(pid);
    }
    return stop_callers(callers, 2) && good;
}

static bool test_exit_in_use(void) {
    bool good = true;
    fflush(stdout);
    for (int i = 0; i < 40 && good; i++) {
        const pid_t pid = fork();
        if (pid == 0) {
            pthread_t callers[2];
            alarm(60);
            start_callers(callers, 2);
            sleep_us(i * 50);
            exit(run_one(100, 4) ? 0 : 1); /* with atexit handlers and destructors */
        }
        good = pid > 0 && child_is_good(pid);
    }
    return good;
}

static void look_at_mask(void *context, size_t index) {
    sigset_t mask;
    (void)index;
    sleep_us(200);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    const bool caller = !sigismember(&mask, SIGINT);
    atomic_fetch_add((atomic_uint *)context + (caller ? 0 : 1), 1);
}
static bool test_signals(void) {
    sigset_t before, after;
    atomic_uint seen[2] = {0, 0};
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    fsm_pool_run(look_at_mask, seen, 50, 2);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    return seen[0] && seen[1] && sigismember(&before, SIGINT) == sigismember(&after, SIGINT);
}

/* Signal handlers that interrupt the caller's sleep, as an interval timer does. */
static void on_alarm(int number) { (void)number; }
static bool test_interrupted_join(void) {
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    sigaction(SIGALRM, &action, &before);
    bool good = true;
    for (int i = 0; i < 5; i++) {
        job j;
        begin(&j);
        j.worker_delay_us = 30000;
        j.caller_delay_us = 500;
        ualarm(1000, 1000);
        fsm_pool_run(visit, &j, 4, 3);
        ualarm(0, 0);
        good &= end(&j, 4);
    }
    sigaction(SIGALRM, &before, NULL);
    return good;
}

static void look_at_mode(void *context, size_t index) {
    atomic_uint *wrong = context;
    volatile double third = 1.0;
    (void)index;
    sleep_us(100);
    third /= 3.0;
    atomic_fetch_add(&wrong[0], fegetround() != FE_UPWARD || third * 3.0 <= 1.0);
#if defined __x86_64__
    atomic_fetch_add(&wrong[1], _mm_getcsr() / 0x8000 != 1); /* flush to zero */
#endif
}
static void look_at_default(void *context, size_t index) {
    (void)index;
    sleep_us(100);
    atomic_fetch_add((atomic_uint *)context, fegetround() != FE_TONEAREST);
#if defined __x86_64__
    atomic_fetch_add((atomic_uint *)context, (_mm_getcsr() & 0xffc0) != 0x1f80);
#endif
}
static bool test_fp_mode(void) {
    atomic_uint wrong[3] = {0, 0, 0};
    fenv_t before;
    fegetenv(&before);
    fesetround(FE_UPWARD);
#if defined __x86_64__
    _mm_setcsr(_mm_getcsr() | 0x8000);
#endif
    fsm_pool_run(look_at_mode, wrong, 50, 3);
    fesetenv(&before);
    fsm_pool_run(look_at_default, &wrong[2], 50, 3);
    if (wrong[0] || wrong[1] || wrong[2])
        printf("  wrong rounding %u, flush %u, default %u times\n", wrong[0], wrong[1], wrong[2]);
    return !wrong[0] && !wrong[1] && !wrong[2];
}

/* No room for a thread: the caller does it all. In a child, which has no workers yet. */
static bool test_no_threads_to_be_had(void) {
    if (SANITIZED) return true;
    const pid_t pid = fork();
    if (pid == 0) {
        const struct rlimit none = {1 << 20, 1 << 20};
        alarm(60);
        setrlimit(RLIMIT_AS, &none);
        in_child(run_one(100, 4) && run_one(100, 4));
    }
    return pid > 0 && child_is_good(pid);
}

/* ---- bench ------------------------------------------------------------------------------------------------------- */
static void burn(void *context, size_t index) {
    const double until = now_us() + *(const double *)context;
    (void)index;
    while (now_us() < until) continue;
}
static int by_value(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}
static void show(const char *what, double work, size_t chunks, unsigned threads, double pause, size_t n) {
    double took[2000], each = work / (double)chunks;
    for (size_t i = 0; i < n; i++) {
        const double until = now_us() + pause;
        if (pause > 300) sleep_us((long)pause);
        while (now_us() < until) continue;
        const double start = now_us();
        fsm_pool_run(burn, &each, chunks, threads);
        took[i] = now_us() - start;
    }
    qsort(took, n, sizeof *took, by_value);
    printf("%-34s work %7.1f us in %3zu, %u threads: median %8.2f  p90 %8.2f  p99 %8.2f  max %9.2f us\n", what, work,
           chunks, threads, took[n / 2], took[n * 9 / 10], took[n * 99 / 100], took[n - 1]);
}
static int bench(void) {
    show("nothing, spinning worker", 0, 2, 2, 1, 2000);
    show("nothing, 16 chunks, spinning", 0, 16, 2, 1, 2000);
    show("nothing, sleeping worker", 0, 2, 2, 1000, 300);
    for (double work = 20; work < 2000; work *= 3) {
        show("serial", work, 8, 1, 5, 300);
        show("spinning", work, 8, 2, 5, 300);
        show("sleeping", work, 8, 2, 1000, 200);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "bench") == 0) return bench();
    static const struct {
        const char *name;
        bool (*test)(void);
        bool forks;
    } tests[] = {
        {"workers start lazily, as many as wanted", test_lazy, false},
        {"each index runs exactly once", test_each_index_once, false},
        {"at most `threads` threads take part", test_thread_limit, false},
        {"nested calls", test_nested, false},
        {"10^5 tiny jobs", test_tiny_jobs, false},
        {"8 callers at once", test_concurrent_callers, false},
        {"tiny jobs under load", test_tiny_jobs_under_load, false},
        {"a slow worker, a slow caller", test_slow_worker, false},
        {"pauses between jobs", test_pauses, false},
        {"workers block signals, the caller's mask is kept", test_signals, false},
        {"signals interrupt the join", test_interrupted_join, false},
        {"tasks see the caller's floating-point modes", test_fp_mode, false},
        {"200 forks after use", test_fork_after_use, true},
        {"200 forks while two threads are inside", test_fork_while_inside, true},
        {"exit while threads are inside", test_exit_in_use, true},
        {"no threads to be had", test_no_threads_to_be_had, true},
        {"256 threads and more", test_many_threads, false},
    };
    const bool may_fork = argc < 2 || strcmp(argv[1], "nofork") != 0;
    int failed = 0;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (tests[i].forks && !may_fork) continue;
        const double start = now_us();
        const bool good = tests[i].test();
        printf("%s  %s (%.2f s)\n", good ? "ok    " : "FAILED", tests[i].name, (now_us() - start) * 1e-6);
        fflush(stdout);
        failed |= !good;
    }
    return failed;
}
