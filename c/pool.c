/* The thread pool. One job at a time, its unclaimed indices counted down in one atomic word, `tickets`.

   Why no stale worker can touch a job that has ended: a worker reads the job only after it has taken a ticket, and the
   caller does not return (so nobody publishes the next job) before every taken ticket is handed in as finished. A worker
   delayed between looking at `tickets` and its compare-and-swap takes a ticket of whichever job is then open, or none;
   the word holds all that decides whether it may, so an equal value of a later job is as good. No generation is needed. */
#if !defined _POSIX_C_SOURCE && !defined __APPLE__
#define _POSIX_C_SOURCE 200809L
#endif
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* A semaphore, because posting one takes no lock: with a condition variable the caller could wait for the mutex of a
   worker descheduled on its way to sleep. Apple has no unnamed POSIX ones. */
#ifdef __APPLE__
#include <dispatch/dispatch.h>
typedef dispatch_semaphore_t semaphore;
static bool semaphore_make(semaphore *s) { return (*s = dispatch_semaphore_create(0)) != NULL; }
static void semaphore_post(semaphore *s) { dispatch_semaphore_signal(*s); }
static bool semaphore_wait(semaphore *s) { return dispatch_semaphore_wait(*s, DISPATCH_TIME_FOREVER) == 0; }
#else
#include <semaphore.h>
typedef sem_t semaphore;
static bool semaphore_make(semaphore *s) { return sem_init(s, 0, 0) == 0; }
static void semaphore_post(semaphore *s) { sem_post(s); }
static bool semaphore_wait(semaphore *s) { return sem_wait(s) == 0; } /* false: a signal handler ran */
#endif

/* The part of the floating-point environment that changes results: rounding mode, flush to zero, denormals are zero.
   A worker takes the caller's with each ticket, so results do not depend on which thread ran a chunk. These registers
   cost a few cycles to read and are written only on a change; fegetenv would also save the whole x87 state. */
#ifdef __x86_64__
#include <immintrin.h>
typedef struct {
    unsigned sse;
    unsigned short x87;
} fp_mode; /* x87 for long double, and as fegetround() looks there */
static fp_mode fp_mode_get(void) {
    fp_mode mode = {_mm_getcsr() & ~0x3fU, 0}; /* without the sticky exception flags */
    __asm__ volatile("fnstcw %0" : "=m"(mode.x87));
    return mode;
}
static void fp_mode_set(const fp_mode *mode) {
    const fp_mode now = fp_mode_get();
    if (now.sse != mode->sse) _mm_setcsr(mode->sse);
    if (now.x87 != mode->x87) __asm__ volatile("fldcw %0" : : "m"(mode->x87));
}
static void relax(void) { _mm_pause(); }
#elif defined __aarch64__
typedef uint64_t fp_mode;
static fp_mode fp_mode_get(void) {
    fp_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void fp_mode_set(const fp_mode *mode) {
    if (fp_mode_get() != *mode) __asm__ volatile("msr fpcr, %0" : : "r"(*mode) : "memory");
}
static void relax(void) { __asm__ volatile("isb" : : : "memory"); } /* `yield` is a no-op on most cores */
#else
#include <fenv.h>
typedef fenv_t fp_mode;
static fp_mode fp_mode_get(void) {
    fp_mode mode;
    fegetenv(&mode);
    return mode;
}
static void fp_mode_set(const fp_mode *mode) { fesetenv(mode); }
static void relax(void) { atomic_signal_fence(memory_order_seq_cst); }
#endif

#ifndef FSM_POOL_SPIN_NS
#define FSM_POOL_SPIN_NS 50000 /* about what a wake-up costs: spinning longer loses more than sleeping would */
#endif
enum {
    SEATS = 256, /* seat 0 is the caller's, the others are workers */
    WAKES = 8,   /* sleepers woken by one claim; the woken wake the others, so a big pool is up in two or three steps */
    STACK = 512 << 10, /* kernels need little, but glibc takes every library's static TLS out of it */
    LINE = 128,        /* two cache lines: neighbours are fetched in pairs */
};

static struct {
    _Alignas(LINE) _Atomic uint64_t tickets;  /* unclaimed indices * 256 + the highest seat that may claim */
    _Alignas(LINE) atomic_size_t unfinished;  /* indices not finished; the caller hands its own in together */
    _Alignas(LINE) atomic_bool asleep[SEATS]; /* whoever clears it owes that seat one post */
    _Alignas(LINE) void (*task)(void *,
                                size_t); /* the job: written while no ticket is out, read with a ticket in hand */
    void *context;
    size_t count;
    fp_mode mode;
    _Alignas(LINE) atomic_bool busy; /* guards what follows, and being the caller */
    bool fork_handled;
    unsigned workers;
    semaphore semaphores[SEATS];
} pool;

static bool may_claim(uint64_t tickets, unsigned seat) { return tickets >= SEATS && seat <= tickets % SEATS; }

/* What the seat waits for: the caller for the end of the job, a worker for a ticket. */
static bool ready(unsigned seat) {
    return seat ? may_claim(atomic_load(&pool.tickets), seat) : atomic_load(&pool.unfinished) == 0;
}

static bool wake(unsigned seat) {
    if (!atomic_load(&pool.asleep[seat]) || !atomic_exchange(&pool.asleep[seat], false)) return false;
    semaphore_post(&pool.semaphores[seat]);
    return true;
}

/* `asleep` is set before the last look at `ready`, and wakers change what `ready` reads before they look at `asleep`
   (all sequentially consistent), so one of the two sees the other. May wake for nothing. */
static void sleep_until_woken(unsigned seat) {
    atomic_store(&pool.asleep[seat], true);
    if (ready(seat) && atomic_exchange(&pool.asleep[seat], false)) return;
    int cancel;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE,
                           &cancel); /* a caller cancelled here would leave a job without owner */
    while (!semaphore_wait(&pool.semaphores[seat])) continue;
    pthread_setcancelstate(cancel, &cancel);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Spins by the clock, since a pause takes 10 to 140 cycles. Yields meanwhile: where the other CPUs are taken, a worker wakes
   on the caller's, and spinning there would keep the caller from its chunk (a 150 us job took 190). Sleeps at last, also
   as the caller, so that a worker that lost its CPU in mid-chunk can have this one. */
static void wait_until_ready(unsigned seat) {
    int64_t start = 0;
    for (unsigned spins = 1; !ready(seat); spins++) {
        relax();
        if (spins % 32) continue;
        sched_yield();
        const int64_t now = now_ns();
        if (start == 0)
            start = now;
        else if (now - start > FSM_POOL_SPIN_NS) {
            sleep_until_woken(seat);
            start = 0;
        }
    }
}

/* Claims and runs indices until none is left for this seat; returns how many it ran. Claiming comes before waking so that
   nobody is woken for the last index, and before reading the job (see the top). */
static size_t take_part(unsigned seat) {
    size_t ran = 0;
    uint64_t tickets = atomic_load(&pool.tickets);
    while (may_claim(tickets, seat)) {
        if (!atomic_compare_exchange_weak(&pool.tickets, &tickets, tickets - SEATS)) continue;
        const size_t left = (size_t)(tickets / SEATS);
        size_t wakes = left - 1 < WAKES ? left - 1 : WAKES;
        for (unsigned other = 1; wakes && other <= tickets % SEATS; other++) wakes -= wake(other);
        if (seat) fp_mode_set(&pool.mode);
        pool.task(pool.context, pool.count - left);
        ran++;
        if (seat && atomic_fetch_sub(&pool.unfinished, 1) == 1) wake(0); /* from here on the job may be gone */
        tickets = atomic_load(&pool.tickets);
    }
    return ran;
}

static void *work(void *seat) {
    for (;;) {
        wait_until_ready((unsigned)(uintptr_t)seat);
        take_part((unsigned)(uintptr_t)seat);
    }
    return NULL;
}

/* In the child only the forking thread lives on: forget the workers, and the caller that may have been inside. */
static void reset_in_child(void) {
    atomic_store(&pool.tickets, 0);
    for (unsigned seat = 0; seat < SEATS; seat++) atomic_store(&pool.asleep[seat], false);
    pool.workers = 0;
    atomic_store(&pool.busy, false);
}

static bool start_worker(const pthread_attr_t *attributes) {
    const unsigned seat = pool.workers + 1;
    pthread_t thread;
    if (!semaphore_make(&pool.semaphores[seat])) return false;
    if (pthread_create(&thread, attributes, work, (void *)(uintptr_t)seat)) return false;
    pool.workers = seat;
    return true;
}

/* Starts workers until there are `wanted`, or as many as can be had. They take no signals meant for the program, except
   faults of their own, which a crash reporter should see. */
static void start_workers(unsigned wanted) {
    if (!pool.fork_handled && !(pool.fork_handled = pthread_atfork(NULL, NULL, reset_in_child) == 0)) return;
    if (pool.workers == 0 && !semaphore_make(&pool.semaphores[0])) return;
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    pthread_attr_t attributes;
    sigset_t blocked, before;
    if (pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (pool.workers < wanted && start_worker(&attributes)) continue;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

void fsm_pool_run(void (*task)(void *context, size_t index), void *context, size_t count, unsigned threads) {
    size_t helpers = threads > 1 && count > 1 ? threads - 1 : 0;
    if (helpers > SEATS - 1) helpers = SEATS - 1;
    if (helpers > count - 1) helpers = count - 1;
    if (helpers == 0 || (uint64_t)count > UINT64_MAX / SEATS || atomic_exchange(&pool.busy, true)) {
        for (size_t i = 0; i < count; i++) task(context, i);
        return;
    }
    if (pool.workers < helpers) start_workers((unsigned)helpers);
    if (helpers > pool.workers) helpers = pool.workers;
    pool.task = task;
    pool.context = context;
    pool.count = count;
    pool.mode = fp_mode_get();
    atomic_store_explicit(&pool.unfinished, count, memory_order_relaxed); /* published by the store of the tickets */
    atomic_store(&pool.tickets, (uint64_t)count * SEATS + helpers);
    const size_t ran = take_part(0);
    if (atomic_fetch_sub(&pool.unfinished, ran) != ran) wait_until_ready(0);
    atomic_store(&pool.busy, false);
}
