typedef struct fsm_isa fsm_isa;
const fsm_isa *fsm_isa_usable(size_t i);
const char *fsm_isa_built(size_t i);
const char *fsm_isa_name(const fsm_isa *isa);

typedef enum fsm_op {
    FSM_SOFTMAX, FSM_LOG_SOFTMAX, FSM_LOGSUMEXP, FSM_LOGMEANEXP, FSM_LOGCUMSUMEXP, FSM_SIGMOID, FSM_SOFTPLUS,
    FSM_LOG_PROB, FSM_LOSS_GRAD, ...
} fsm_op;
typedef enum fsm_type { FSM_F32, FSM_F64, FSM_F16, FSM_BF16, ... } fsm_type;
typedef enum fsm_status { FSM_OK, FSM_INVALID, FSM_NO_MEMORY, FSM_OUT_OF_RANGE } fsm_status;

fsm_status fsm_run(const fsm_isa *isa, fsm_op op, fsm_type type, const void *x, void *y, size_t outer, size_t n,
                   size_t inner, const ptrdiff_t *strides, unsigned threads);

fsm_status fsm_vjp(const fsm_isa *isa, fsm_op op, fsm_type type, const void *g, const void *y, void *dx, size_t outer,
                   size_t n, size_t inner, const ptrdiff_t *strides, unsigned threads);

typedef struct fsm_modifiers {
    const void *temperature;
    ptrdiff_t temperature_strides[2];
    double softcap;
    const void *bias;
    fsm_type bias_type;
    ptrdiff_t bias_strides[3];
    const unsigned char *where;
    ptrdiff_t where_strides[3];
    const void *sink;
    ptrdiff_t sink_strides[2];
    const void *empty;
    void *lse;
    ptrdiff_t lse_strides[2];
    const int64_t *target;
    ptrdiff_t target_strides[2];
    int64_t ignored;
    const void *scale;
    ptrdiff_t scale_strides[2];
    double lse_scale;
    void *log_prob;
    ptrdiff_t log_prob_strides[2];
} fsm_modifiers;

fsm_status fsm_run_modified(const fsm_isa *isa, fsm_op op, fsm_type type, const void *x, void *y, size_t outer, size_t n,
                            size_t inner, const ptrdiff_t *strides, unsigned threads, const fsm_modifiers *modifiers);

struct array { char *data; int ndim; intptr_t *shape, *strides; void *dtype; int flags; ...; };
struct scalar32 { float value; ...; };
struct scalar64 { double value; ...; };
struct scalar16 { uint16_t value; ...; };
struct direct {
    const fsm_isa *isa;
    fsm_op op;
    enum direct_kind { DIRECT_CALL, DIRECT_LOSS, DIRECT_VJP } kind;
    int reduces;
    size_t tiny_below, alone_below[4];
    uintptr_t ndarray, dtypes[4], scalars[4], boolean, integer, numpy, threads;
    ...;
};
int direct_function(struct direct *how, uintptr_t list);
