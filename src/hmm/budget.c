/* SPDX-License-Identifier: MIT */
/*
 * Keeping a tree of processes within its budget of RAM.
 *
 * DOC: what is counted
 *
 * Anonymous memory of every space (statm: resident less shared), the windows,
 * and all that this process itself has resident and anonymous: its records and
 * what devices keep in RAM.  Pages shared by fork would be counted once a
 * space: from time to time the proportional share (Pss_Anon) tells by how much,
 * and until the next time every fault of a program is taken to have ended the
 * sharing of one page: a copy on write adds to what the tree costs, and nothing
 * else tells of it.  Between two measurements faults add to an estimate what
 * they place.
 *
 * DOC: when something happens
 *
 *   arm	at 15/16 of the budget everything is registered, so that growth
 *		shows as faults, which can be held back.  Before: nothing at all.
 *		Of many spaces that grow fast some sooner, but not below half.
 *		Of a space with an agent from its start on nothing is moved before
 *		the walk that arms it got to the end, and until then it is not
 *		taken for one that cannot give:
 *		to read the marks of its mappings takes longer than to register
 *		all of them, and keeps who would from it.
 *   high	above it pages are moved out, down to low
 *   budget	above it faults wait for room, for a bounded time
 *
 * Of what is shared a part is reserved, and high, low and budget are lower by that.
 *
 * How long to sleep between measurements follows from what could be allocated
 * meanwhile: first touch of fresh memory is not faster than GROWTH.
 *
 * DOC: where nothing runs
 *
 * Once armed, all mappings but those that are registered, by the records, are walked
 * through at each look, for what has been mapped since.  Not of a space in which
 * nothing has run since the last walk began that left nothing to be done: the CPU
 * time of its process is what it was, and so is what it has mapped and resident
 * (another process may share it, or a debugger change it).  CPU time is read before the
 * walk, so what ran during it shows at the next look.  The time of a thread that runs at
 * this moment is as of its last clock tick: it may show one tick late, and never stays
 * hidden, as it is not what it was when the thread has run on.  Who changes a space from
 * outside and leaves both sizes as they were is met by a walk every WALK_REST_NS.
 *
 * While nothing runs the watcher looks less often, but never later than a program
 * which wakes up at once could grow by half of what the budget may be exceeded by
 * for a moment.  A sleep and a wake-up cost more than all it does at a look, so after
 * some such looks it sleeps until somebody has run, where that can be had
 * (asleep.c).
 *
 * DOC: two threads
 *
 * One watches: it measures, arms, and looks for what has been mapped since,
 * for that grows unseen until it is registered.  The other one moves pages out
 * when it is told to (want), by the watcher or by a fault.  What takes long in
 * the one must not keep the other: a round of reclaim may take 25 ms, in which
 * two CPUs touch 100 MiB.  They share what is atomic, and lock; out_lock is
 * the reclaimer's.
 *
 * The watcher opens nothing, and measures no shares: a look-up in /proc waits for
 * whoever is at the same one and was preempted, and shares are milliseconds under
 * the locks of the spaces.  Either had it come 10 ms late at the worst moment.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hmm/internal.h"

#define GROWTH 2000000000ull      /* bytes a second, on each CPU */
#define SLEEP_MIN_NS 8000000ull   /* not oftener: at 2 ms it takes 2 % of a CPU; meanwhile 16 MiB can be touched */
#define SLEEP_CALM_NS 24000000ull /* 48 MiB can be touched meanwhile */
#define CALM_LOOKS 8u
#define CALM_BYTES (2ull << 20)
#define SLEEP_MAX_NS 200000000ull
#define SLEEP_GROWING_NS 4000000ull
#define SLEEP_ARMED_NS 10000000ull
#define SLEEP_SHRINKING_NS 2000000ull
#define FUTILE_ROUNDS 8u
#define FUTILE_MAX_NS 1000000000ull
#define CREDIT_EVERY_NS 250000000ull
#define CREDIT_FAULTS 512u
#define CREDIT_REST 4u
#define RESERVE_PART 4u           /* of what is shared is taken to be written before there is room */
#define FORKING_NS 60000000000ull /* no fork takes longer, its atfork handlers included */
#define ARM_FIRST (1ull << 20)
#define ARM_SPACE_NS 500000ull /* it takes to arm one of many */
#define BURST (64ull << 20)
#define BUDGET_NICE (-10)
#define TIGHT_NS 2000000l
#define AT_ONCE_NS 1000000ull /* a walk that takes longer gives up its priority */
#define WALK_NS 2000000ull    /* is waited for the walks of all spaces */
#define WALKS 32u             /* by mm->seq_score; what a burst is, too */
#define WALK_REST_NS 1000000000ull
#define STILL_LOOKS 8u
#define SLEEP_STILL_NS 100000000ull
#define SLEEP_ASLEEP_NS 1000000000ull
#define HOLD_NS 20000000ull
#define HOLD_MAX_NS 200000000ull

/* How long it takes all CPUs to touch that much. */
static uint64_t grown_by_ns(const struct hmm *h, uint64_t bytes)
{
	return bytes * 1000 / (h->growth / 1000000);
}

/* Many that grow fast are armed earlier: until the last of them is, the others go on growing. */
static uint64_t arm_at(const struct hmm *h)
{
	uint64_t usual = h->opt.budget - h->opt.budget / 16;
	unsigned spaces = atomic_load(&h->spaces);
	uint64_t early = h->growth / 1000000 * ARM_SPACE_NS / 1000 * spaces;

	if (h->calm || spaces < 2)
		return usual;
	return usual > h->opt.budget / 2 + early ? usual - early : h->opt.budget / 2;
}

/* What is shared becomes a copy when it is written, by no fault that could be held back. */
static uint64_t reserve(const struct hmm *h)
{
	uint64_t shared = atomic_load(&h->shared) / RESERVE_PART, most = h->opt.budget / 8;

	return shared < most ? shared : most;
}

/* Who walks needs it for what is brought ahead; who goes about at random would find there what he comes back to. */
static uint64_t room(const struct hmm *h)
{
	return h->opt.budget / (atomic_load(&h->walks) ? 64 : 128);
}

static uint64_t high_at(const struct hmm *h)
{
	return h->opt.budget - room(h) - reserve(h);
}

static uint64_t low_at(const struct hmm *h)
{
	return h->opt.budget - 2 * room(h) - reserve(h);
}

/* In pages; all 0 when the task is gone. */
struct statm {
	unsigned long size, resident, shared;
};

static struct statm statm_read(int fd)
{
	char buf[128];
	ssize_t n = fd >= 0 ? pread(fd, buf, sizeof(buf) - 1, 0) : -1;
	struct statm s;

	if (n <= 0)
		return (struct statm){0};
	buf[n] = 0;
	if (sscanf(buf, "%lu %lu %lu", &s.size, &s.resident, &s.shared) != 3 || s.resident < s.shared)
		return (struct statm){0};
	return s;
}

/* Resident less shared. */
static uint64_t statm_anon(int fd)
{
	struct statm s = statm_read(fd);

	return s.resident - s.shared;
}

static uint64_t pss_anon_pages(int fd)
{
	char buf[2048];
	ssize_t n = fd >= 0 ? pread(fd, buf, sizeof(buf) - 1, 0) : -1;
	unsigned long kib;
	char *p;

	if (n <= 0)
		return 0;
	buf[n] = 0;
	p = strstr(buf, "Pss_Anon:");
	return p && sscanf(p + 9, "%lu", &kib) == 1 ? kib / 4 : 0;
}

/* h->lock held.  Faults of the program that needed no reading, so far: each may have made a copy of a page that was
 * shared. */
static uint64_t minor_faults(struct hmm_mm *mm)
{
	char buf[1024], *at;
	unsigned long n = 0;
	/* Not opened here: a look-up in /proc waits for whoever is at the same one, and may have been preempted. */
	ssize_t len = mm->stat_fd >= 0 ? pread(mm->stat_fd, buf, sizeof(buf) - 1, 0) : -1;

	if (len <= 0)
		return 0;
	buf[len] = 0;
	at = strrchr(buf, ')'); /* the name may hold anything */
	if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %lu", &n) != 1)
		return 0;
	return n;
}

/* h->lock held.  Returns faults since the space's credit was measured. */
static uint64_t faults_since_credit(struct hmm_mm *mm)
{
	uint64_t n = atomic_load(&mm->forked) ? minor_faults(mm) : 0;

	mm->minor_faults = n > mm->minor_faults ? n : mm->minor_faults;
	return mm->minor_faults - mm->credit_faults;
}

static uint64_t measure_mm(struct hmm_mm *mm, uint64_t *all_shared)
{
	struct statm s = statm_read(mm->statm_fd);
	uint64_t anon = s.resident - s.shared, window = 0, shared;
	struct stat st;

	atomic_store(&mm->statm_size, s.size);
	atomic_store(&mm->statm_resident, s.resident);
	if (!anon && atomic_load(&mm->pid_learned))
		hmm_mm_pid_ended(mm);
	shared = mm->minor_faults - mm->credit_faults;
	shared = mm->shared_credit > shared ? mm->shared_credit - shared : 0;
	mm->anon_pages = anon > shared ? anon - shared : 0;
	*all_shared += anon - mm->anon_pages;
	if (mm->window_fd >= 0 && !fstat(mm->window_fd, &st))
		window = (uint64_t)st.st_blocks * 512;
	return mm->anon_pages * UMM_PAGE + window;
}

/*
 * All of them at once: a copy that one makes takes a share from the others, too.
 * Milliseconds for each that is large, so not under the lock, and not by who
 * watches.  Who wants it while somebody is at it goes on with what there was.
 */
static void credit_renew(struct hmm *h)
{
	uint64_t start = umm_now_ns();
	struct hmm_mm **list;
	int n;

	if (atomic_exchange(&h->crediting, true))
		return;
	n = hmm_mms_get(h, &list);
	for (int i = 0; i < n; i++) {
		struct hmm_mm *mm = list[i];

		if (!atomic_load(&mm->forked))
			continue;
		pthread_mutex_lock(&h->lock);
		faults_since_credit(mm);
		uint64_t faults = mm->minor_faults;
		pthread_mutex_unlock(&h->lock);
		uint64_t anon = statm_anon(mm->statm_fd), pss = pss_anon_pages(mm->rollup_fd);

		pthread_mutex_lock(&h->lock);
		mm->credit_faults = faults;
		mm->shared_credit = pss && pss < anon ? anon - pss : 0;
		pthread_mutex_unlock(&h->lock);
	}
	if (n >= 0)
		hmm_mms_put(list, (unsigned)n);
	pthread_mutex_lock(&h->lock);
	h->credit_at_ns = umm_now_ns();
	h->credit_cost_ns = h->credit_at_ns - start;
	pthread_mutex_unlock(&h->lock);
	atomic_store(&h->credit_due, false);
	atomic_store(&h->crediting, false);
}

static void note_away(struct hmm *h, uint64_t away)
{
	uint64_t stored = 0;

	if (away <= atomic_load(&h->away_peak))
		return;
	for (unsigned i = 0; i < h->chain.n; i++) {
		struct hmm_device_stats st = {0};

		h->chain.dev[i]->ops->stats(h->chain.dev[i], &st);
		stored += st.bytes_stored;
	}
	atomic_store(&h->away_peak, away);
	atomic_store(&h->stored_at_peak, stored);
}

/* By the shares as they are known. */
static uint64_t measure(struct hmm *h)
{
	uint64_t now = umm_now_ns(), sum = 0, away = 0, peak, faults = 0, shared = 0;
	bool forked = false, walks = false;
	unsigned spaces = 0;

	pthread_mutex_lock(&h->lock);
	for (struct hmm_mm *mm = h->mms; mm; mm = mm->next) {
		forked |= atomic_load(&mm->forked);
		walks |= atomic_load(&mm->seq_score) >= WALKS;
		faults += faults_since_credit(mm);
		spaces++;
		sum += measure_mm(mm, &shared);
		away += atomic_load(&mm->radix.away);
	}
	atomic_store(&h->spaces, spaces);
	atomic_store(&h->walks, walks);
	/* Dear, so never more than a part of the time. */
	atomic_store(&h->credit_due,
		     forked && (now - h->credit_at_ns > CREDIT_EVERY_NS ||
				(faults > CREDIT_FAULTS && now - h->credit_at_ns > CREDIT_REST * h->credit_cost_ns)));
	note_away(h, away);
	atomic_store(&h->shared, shared * UMM_PAGE);
	sum += statm_anon(h->self_statm_fd) * UMM_PAGE;
	pthread_mutex_unlock(&h->lock);
	atomic_store(&h->estimate, sum);
	peak = atomic_load(&h->peak);
	while (sum > peak && !atomic_compare_exchange_weak(&h->peak, &peak, sum))
		;
	return sum;
}

uint64_t hmm_budget_measure(struct hmm *h)
{
	uint64_t sum = measure(h);

	if (!atomic_load(&h->credit_due))
		return sum;
	credit_renew(h);
	return measure(h);
}

static void want_room(struct hmm *h)
{
	pthread_mutex_lock(&h->wait_lock);
	atomic_store(&h->want_set, true);
	pthread_cond_signal(&h->want);
	pthread_mutex_unlock(&h->wait_lock);
}

void hmm_budget_charge(struct hmm_mm *mm, uint64_t pages)
{
	struct hmm *h = mm->h;

	if (!h->budget_started || !h->opt.budget)
		return;
	/* By time: how often room is made says nothing about how much. */
	for (uint64_t now = 0, until = 0; now <= until;) {
		uint64_t total = atomic_load(&h->estimate) + pages * UMM_PAGE;
		struct timespec ts;

		if (total > high_at(h) && !atomic_load(&h->want_set) && !atomic_load(&h->full))
			want_room(h);
		if (total + reserve(h) <= h->opt.budget || atomic_load(&h->full) || atomic_load(&h->tight) ||
		    atomic_load(&h->stop) || atomic_load(&h->resting))
			return;
		atomic_fetch_add(&h->held, 1);
		umm_monitor_yield();
		hmm_deadline(&ts, HOLD_NS);
		pthread_mutex_lock(&h->wait_lock);
		pthread_cond_timedwait(&h->room, &h->wait_lock, &ts);
		pthread_mutex_unlock(&h->wait_lock);
		now = umm_now_ns();
		if (!until)
			until = now + HOLD_MAX_NS;
	}
	atomic_fetch_add(&h->held_in_vain, 1);
}

/* Whether @mm may be managed from now on; see "forks and the moment of arming" in src/run/preload.c. */
static bool arm(struct hmm_mm *mm)
{
	struct umm_ctl *ctl = mm->space->ctl;
	uint64_t now = umm_now_ns();

	if (!mm->arming_ns) {
		if (mm->inside->arm(mm->inside_priv))
			return false;
		atomic_store(&ctl->armed, 1);
		mm->arming_ns = now;
	}
	/* Who was killed in the middle of a fork counts for ever: those who live on in the space are not spared. */
	return !atomic_load(&ctl->no_fork_events) || !atomic_load(&ctl->forking) || now - mm->arming_ns > FORKING_NS;
}

/* Among dozens that grow it must get its turn.  Who may not have that goes on without. */
static void go_before_others(void)
{
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), BUDGET_NICE);
}

/*
 * What it does takes a fraction of a millisecond, but whatever it comes late grows
 * by four gigabytes a second: with a nice value alone it was seen to come 30 ms
 * late where a dozen processes wanted the CPUs.
 */
static void go_at_once(void)
{
	sched_setscheduler(0, SCHED_RR, &(struct sched_param){.sched_priority = 1});
}

static void go_in_turn(void)
{
	sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
}

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* What the space has is registered, as far as it was found; or it will not be now. */
static void armed_all(struct hmm_mm *mm)
{
	if (atomic_exchange(&mm->looking, false))
		atomic_fetch_sub(&mm->h->looking, 1);
}

/* To make sure of thousands takes long, and those fault that grow: others have to run, to serve them. */
static void looked(struct hmm_mm *mm, bool unsure)
{
	armed_all(mm);
	mm->walk_ns = cpu_ns() - mm->walk_cpu_ns;
	if (unsure && !mm->in_turn)
		go_in_turn();
	mm->in_turn |= unsure;
}

static void discover(struct hmm_mm *mm, uint64_t least, bool *left)
{
	mm->walk_cpu_ns = cpu_ns();
	hmm_discover(mm, least, looked, left);
	mm->sure_ns = cpu_ns() - mm->walk_cpu_ns;
	mm->sure_ns = mm->sure_ns > mm->walk_ns ? mm->sure_ns - mm->walk_ns : 0;
}

static void arm_one(struct hmm_mm *mm)
{
	/* Before anything was registered, or where events are withheld, only the hook knows. */
	if (atomic_load(&mm->space->ctl->has_forked))
		atomic_store(&mm->forked, true);
	atomic_fetch_add(&mm->h->looking, 1);
	atomic_store(&mm->looking, true);
	if (arm(mm)) {
		atomic_store(&mm->armed, true);
		atomic_fetch_add(&mm->h->newly_armed, 1);
		/* To register takes long while others fault there: first what can grow most. */
		discover(mm, ARM_FIRST, NULL);
	}
	armed_all(mm);
	/* The rest at the next look, and at once. */
	mm->walk_ns = mm->sure_ns = 0;
}

/* Of all threads of the process, those included that have ended; 0: it is not known, or has ended. */
static uint64_t program_cpu_ns(const struct hmm_mm *mm)
{
	pid_t pid = atomic_load(&mm->space->pid); /* once: of 0 the clock is our own */
	struct timespec ts;
	clockid_t clock;

	if (pid <= 0 || clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &ts))
		return 0;
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* What a look finds is what the last one found; see "where nothing runs". */
static bool is_still(const struct hmm_mm *mm)
{
	return atomic_load(&mm->settled) && atomic_load(&mm->statm_size) == atomic_load(&mm->seen_size) &&
	       atomic_load(&mm->statm_resident) == atomic_load(&mm->seen_resident) &&
	       program_cpu_ns(mm) == atomic_load(&mm->seen_cpu_ns);
}

static void walk(struct hmm_mm *mm, uint64_t now)
{
	uint64_t ran = program_cpu_ns(mm);
	bool left;

	atomic_store(&mm->settled, false);
	atomic_store(&mm->seen_cpu_ns, ran);
	atomic_store(&mm->seen_size, atomic_load(&mm->statm_size));
	atomic_store(&mm->seen_resident, atomic_load(&mm->statm_resident));
	atomic_store(&mm->walked_ns, now);
	atomic_fetch_add(&mm->h->walked, 1);
	discover(mm, 0, &left);
	atomic_store(&mm->settled, ran && !left);
}

static void look_at_one(struct hmm_mm *mm)
{
	uint64_t now = umm_now_ns();

	if (!mm->inside || atomic_load(&mm->dead) || atomic_load(&mm->rest) ||
	    (atomic_load(&mm->armed) && now < mm->discover_at_ns))
		return;
	/* Nor may it spin: marks are read with events, for which others have to run. */
	mm->in_turn = mm->walk_ns > AT_ONCE_NS || atomic_load(&mm->space->ctl->marked);
	if (mm->in_turn)
		go_in_turn();
	if (atomic_load(&mm->armed))
		walk(mm, now);
	else
		arm_one(mm);
	if (mm->in_turn)
		go_at_once();
	/* Thousands of mappings take milliseconds to walk: at most a tenth of the time, and half of it for new ones. */
	mm->discover_at_ns = now + 10 * mm->walk_ns + 2 * mm->sure_ns;
}

/*
 * Whoever is not managed yet is, and what has been mapped since is found, if not now then the next time.
 * Returns whether anything has run.
 */
static bool look_at_all(struct hmm *h)
{
	uint64_t now = umm_now_ns();
	struct hmm_mm **list;
	int n = hmm_mms_get(h, &list), moving = 0;
	bool ran = false;

	if (n < 0)
		return true; /* the next round tries again */
	atomic_store(&h->armed, true);
	/* Those to be looked at first; all are let go of below. */
	for (int i = 0; i < n; i++) {
		struct hmm_mm *mm = list[i];

		if (!is_still(mm))
			ran = true;
		else if (now - atomic_load(&mm->walked_ns) < WALK_REST_NS)
			continue;
		list[i] = list[moving];
		list[moving++] = mm;
	}
	if (moving)
		hmm_walkers_each(h, list, (unsigned)moving, look_at_one, WALK_NS);
	hmm_mms_put(list, (unsigned)n);
	return ran;
}

static void room_made(struct hmm *h)
{
	pthread_mutex_lock(&h->wait_lock);
	pthread_cond_broadcast(&h->room);
	pthread_mutex_unlock(&h->wait_lock);
}

/* The reclaimer's place. */
struct place {
	cpu_set_t all;
	int off; /* -1: anywhere */
};

/* It takes a CPU for milliseconds: not that of a program and of who serves its faults, if there is another. */
static void make_way(struct hmm *h, struct place *p)
{
	int cpu = umm_monitor_cpu(h->monitor);
	cpu_set_t set = p->all;

	if (cpu == p->off)
		return;
	p->off = cpu;
	if (cpu >= 0)
		CPU_CLR((unsigned)cpu, &set);
	if (CPU_COUNT(&set))
		sched_setaffinity(0, sizeof(set), &set);
}

static void shrink(struct hmm *h, uint64_t total, struct place *place)
{
	unsigned futile = 0;

	/* Asked once a round: who measures may change it. */
	for (uint64_t low; total > (low = low_at(h)) && !atomic_load(&h->stop) && !atomic_load(&h->resting);) {
		uint64_t over = (total - low) / UMM_PAGE + 1;
		uint64_t failed = atomic_load(&h->out_failed), copies = hmm_clean_in_ram(h);
		/* Who is being armed is not asked yet: that nothing goes says nothing. */
		bool asks_all = !atomic_load(&h->looking);
		/* Little at a time: each round who waits is told, and shares are weighed anew. */
		uint64_t asked = over < 2 * UMM_BATCH_PAGES ? over : 2 * UMM_BATCH_PAGES;
		make_way(h, place);
		uint64_t went = hmm_reclaim(h, asked);

		total = hmm_budget_measure(h);
		atomic_store(&h->tight, asks_all && total > h->opt.budget && went < asked / 2);
		room_made(h);
		if (went) {
			futile = 0;
			/* What has just come is not to go before anything was done with it. */
			if (atomic_load(&h->tight))
				nanosleep(&(struct timespec){.tv_nsec = TIGHT_NS}, NULL);
			continue;
		}
		/* What copies took is room now, and there may be more of them. */
		if (hmm_clean_in_ram(h) < copies)
			continue;
		/* A program that changes its mappings all the time is in the way, but not for ever. */
		if (atomic_load(&h->out_failed) == failed && (!asks_all || ++futile < FUTILE_ROUNDS)) {
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
			continue;
		}
		atomic_store(&h->full, true);
		h->futile_ns = h->futile_ns ? h->futile_ns * 2 : SLEEP_ARMED_NS;
		if (h->futile_ns > FUTILE_MAX_NS)
			h->futile_ns = FUTILE_MAX_NS;
		if (atomic_load(&h->out_failed) > failed && !atomic_exchange(&h->full_said, true))
			hmm_say(h, "all devices are full: nothing more is moved out, the program goes on above its "
				   "budget");
		return;
	}
	atomic_store(&h->tight, false);
	atomic_store(&h->full, false);
	h->futile_ns = 0;
}

static void calm_note(struct hmm *h, uint64_t total)
{
	h->calm = total > h->looked_at + CALM_BYTES || total + CALM_BYTES < h->looked_at ? 0 : h->calm + 1;
	if (!h->calm)
		h->looked_at = total;
}

/* How long it takes a tree to grow beyond the budget by half of what it may for a moment. */
static uint64_t burst_ns(const struct hmm *h, uint64_t total)
{
	uint64_t at = arm_at(h), beyond = h->opt.budget / 8 > BURST / 2 ? h->opt.budget / 8 : BURST / 2;

	return grown_by_ns(h, (total < at ? at - total : 0) + beyond);
}

static uint64_t pause_armed_ns(const struct hmm *h, uint64_t total)
{
	uint64_t ns;

	if (atomic_load(&h->full))
		return SLEEP_ARMED_NS;
	if (total > high_at(h))
		return SLEEP_SHRINKING_NS;
	if (!h->calm)
		return SLEEP_GROWING_NS;
	if (h->still <= STILL_LOOKS)
		return SLEEP_ARMED_NS;
	ns = burst_ns(h, total);
	return ns < SLEEP_ARMED_NS ? SLEEP_ARMED_NS : ns > SLEEP_STILL_NS ? SLEEP_STILL_NS : ns;
}

static uint64_t pause_ns(const struct hmm *h, uint64_t total)
{
	uint64_t at = arm_at(h), ns, least;

	if (atomic_load(&h->armed))
		return pause_armed_ns(h, total);
	ns = grown_by_ns(h, total < at ? at - total : 0);
	/* A tree that has not grown for a while is not looked at as often. */
	if (h->calm > CALM_LOOKS && ns < SLEEP_CALM_NS) {
		uint64_t calm = burst_ns(h, total);

		ns = calm < SLEEP_CALM_NS ? calm : SLEEP_CALM_NS;
	}
	least = h->calm ? SLEEP_MIN_NS : SLEEP_GROWING_NS;
	return ns < least ? least : ns > SLEEP_MAX_NS ? SLEEP_MAX_NS : ns;
}

/* Returns whether the watcher has slept as long as all do: it looks again at once. */
static bool sleeps_with_all(struct hmm *h, bool nothing_runs)
{
	h->still = nothing_runs ? h->still + 1 : 0;
	if (hmm_asleep_ask(h, h->still)) {
		pthread_mutex_lock(&h->wait_lock);
		pthread_cond_signal(&h->want);
		pthread_mutex_unlock(&h->wait_lock);
	}
	if (nothing_runs) {
		if (!hmm_asleep_armed(h))
			return false;
		if (hmm_asleep_wait(h, SLEEP_ASLEEP_NS))
			return true;
	}
	hmm_asleep_disarm(h);
	h->still = 0;
	return nothing_runs;
}

static void *watch_main(void *arg)
{
	struct hmm *h = arg;

	hmm_asleep_begin(h);
	go_before_others();
	go_at_once(); /* the walkers inherit both */
	while (!atomic_load(&h->stop)) {
		uint64_t total = measure(h);
		bool moving = true;
		struct timespec ts;

		atomic_fetch_add(&h->looks, 1);
		calm_note(h, total);
		if (!atomic_load(&h->resting)) {
			if (total > arm_at(h))
				moving = look_at_all(h);
			if (atomic_exchange(&h->newly_armed, 0))
				total = measure(h); /* it has taken a while */
			/* The reclaimer finds whether what seems too much is shared. */
			if ((total > high_at(h) && !atomic_load(&h->full)) || atomic_load(&h->credit_due))
				want_room(h);
		}
		room_made(h);
		if (sleeps_with_all(h, !moving && total <= high_at(h) && !atomic_load(&h->full)))
			continue;
		hmm_deadline(&ts, pause_ns(h, atomic_load(&h->estimate)));
		pthread_mutex_lock(&h->wait_lock);
		if (!atomic_load(&h->stop))
			pthread_cond_timedwait(&h->ended, &h->wait_lock, &ts);
		pthread_mutex_unlock(&h->wait_lock);
	}
	hmm_asleep_end(h);
	return NULL;
}

static void *reclaim_main(void *arg)
{
	struct hmm *h = arg;
	struct place place = {.off = -1};

	sched_getaffinity(0, sizeof(place.all), &place.all);
	go_before_others();
	while (!atomic_load(&h->stop)) {
		struct timespec ts;
		uint64_t total;

		pthread_mutex_lock(&h->wait_lock);
		while (!atomic_load(&h->want_set) && !atomic_load(&h->stop) &&
		       atomic_load(&h->asleep.state) != HMM_ASLEEP_ASKED)
			pthread_cond_wait(&h->want, &h->wait_lock);
		bool wanted = atomic_exchange(&h->want_set, false);
		pthread_mutex_unlock(&h->wait_lock);
		if (!wanted && !atomic_load(&h->stop)) {
			hmm_asleep_arm(h);
			continue;
		}
		total = hmm_budget_measure(h);
		if (total <= high_at(h)) {
			atomic_store(&h->tight, false);
			atomic_store(&h->full, false);
		}
		if (atomic_load(&h->resting) || atomic_load(&h->stop) || total <= high_at(h))
			continue;
		shrink(h, total, &place);
		if (!atomic_load(&h->full))
			continue;
		/* In vain: the sooner the next try, the less the program gets of the CPUs. */
		room_made(h);
		hmm_deadline(&ts, h->futile_ns);
		pthread_mutex_lock(&h->wait_lock);
		if (!atomic_load(&h->stop))
			pthread_cond_timedwait(&h->ended, &h->wait_lock, &ts);
		atomic_store(&h->want_set, true);
		pthread_mutex_unlock(&h->wait_lock);
	}
	return NULL;
}

static void stop_and_tell(struct hmm *h)
{
	pthread_mutex_lock(&h->wait_lock);
	atomic_store(&h->stop, true);
	pthread_cond_broadcast(&h->want);
	pthread_cond_broadcast(&h->ended);
	pthread_cond_broadcast(&h->room);
	pthread_mutex_unlock(&h->wait_lock);
	hmm_asleep_wake(h);
}

int hmm_budget_start(struct hmm *h)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN); /* it reads a file: not at each look */
	pthread_attr_t attr;
	int rc;

	h->growth = GROWTH * (cpus > 0 ? (uint64_t)cpus : 1);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, UMM_THREAD_STACK);
	h->budget_started = true;
	rc = -pthread_create(&h->reclaim_thread, &attr, reclaim_main, h);
	if (rc) {
		h->budget_started = false;
		goto out;
	}
	rc = -pthread_create(&h->watch_thread, &attr, watch_main, h);
	if (rc) {
		stop_and_tell(h);
		pthread_join(h->reclaim_thread, NULL);
		h->budget_started = false;
		atomic_store(&h->stop, false);
	}
out:
	pthread_attr_destroy(&attr);
	return rc;
}

void hmm_budget_stop(struct hmm *h)
{
	if (!h->budget_started)
		return;
	stop_and_tell(h);
	pthread_join(h->watch_thread, NULL);
	pthread_join(h->reclaim_thread, NULL);
	hmm_asleep_disarm(h);
	hmm_walkers_stop(h);
	h->budget_started = false;
}
