/* A small thread pool for loops whose chunks are independent. POSIX threads and C11 atomics, nothing else. */
#ifndef FSM_POOL_H
#define FSM_POOL_H
#include <stddef.h>

/* Runs task(context, i) once for every i in [0, count), on the caller and at most threads - 1 workers (255 at most);
   returns when all have run. Chunks are claimed one at a time in ascending order, so the caller never waits for a worker
   that has claimed nothing. Workers start when first wanted, never at load, and none when threads or count is 0 or 1.
   Any thread may call; while another is inside, or from inside a task, the caller does all of its work itself.
   Tasks run with the caller's rounding mode and flush-to-zero setting; exception flags raised in a worker stay there.
   A task must not fork, exit its thread or longjmp out. A child of fork() starts workers of its own. */
void fsm_pool_run(void (*task)(void *context, size_t index), void *context, size_t count, unsigned threads);

#endif
