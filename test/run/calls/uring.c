/* SPDX-License-Identifier: MIT */
/*
 * io_uring into memory that is away, with and without a kernel thread that
 * submits, with fixed buffers, and O_DIRECT that is in flight while memory is
 * pushed out.
 */
#include "calls.h"

#include <liburing.h>

#define DEPTH 16u
#define CHUNK (16 * V_PAGE)
#define LEN (area * V_PAGE)
#define NCHUNKS (LEN / CHUNK)

enum how { PLAIN, SQPOLL, FIXED, FIXED_SQPOLL };

static size_t area; /* pages of the buffer */

static const char *const how_name[] = {"plain", "sqpoll", "fixed buffers", "fixed buffers, sqpoll"};

struct io {
	struct io_uring ring;
	bool fixed;
	char *buf;
	int fd;
};

static void one_pass(struct io *io, bool write_it)
{
	unsigned inflight = 0, next = 0, done = 0;

	while (done < NCHUNKS) {
		while (next < NCHUNKS && inflight < DEPTH) {
			struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
			char *p = io->buf + next * CHUNK;

			if (!sqe)
				break;
			if (write_it && io->fixed)
				io_uring_prep_write_fixed(sqe, io->fd, p, CHUNK, next * CHUNK, 0);
			else if (write_it)
				io_uring_prep_write(sqe, io->fd, p, CHUNK, next * CHUNK);
			else if (io->fixed)
				io_uring_prep_read_fixed(sqe, io->fd, p, CHUNK, next * CHUNK, 0);
			else
				io_uring_prep_read(sqe, io->fd, p, CHUNK, next * CHUNK);
			sqe->user_data = next++;
			inflight++;
		}
		int rc = io_uring_submit(&io->ring);
		CHECK(rc >= 0 || rc == -EBUSY || rc == -EINTR, "io_uring_submit %d", rc);
		struct io_uring_cqe *cqe;

		if (!inflight)
			continue; /* the thread that submits has not let go of the queue's slots yet */
		do
			rc = io_uring_wait_cqe(&io->ring, &cqe);
		while (rc == -EINTR);
		CHECK(!rc, "io_uring_wait_cqe %d", rc);
		CHECK(cqe->res == (int)CHUNK, "%s of chunk %u: %d", write_it ? "write" : "read",
		      (unsigned)cqe->user_data, cqe->res);
		io_uring_cqe_seen(&io->ring, cqe);
		inflight--;
		done++;
	}
}

static void run(enum how how, int fd, unsigned passes)
{
	struct io_uring_params p = {0};
	struct io io = {.fd = fd, .buf = v_map(LEN), .fixed = how >= FIXED};
	int rc;

	if (how == SQPOLL || how == FIXED_SQPOLL) {
		p.flags = IORING_SETUP_SQPOLL;
		p.sq_thread_idle = 50;
	}
	rc = io_uring_queue_init_params(DEPTH, &io.ring, &p);
	CHECK(!rc, "io_uring_queue_init %d", rc);
	v_fill_all(io.buf, area, how, 0, V_QUARTER);
	wait_away(io.buf, area, area / 2, how_name[how]);
	if (io.fixed) {
		struct iovec v = {io.buf, LEN};

		/* Pins what is away: all of it comes back, and stays. */
		rc = io_uring_register_buffers(&io.ring, &v, 1);
		CHECK(!rc, "io_uring_register_buffers %d", rc);
	}
	for (unsigned gen = 0; gen < passes; gen++) {
		if (!io.fixed)
			wait_away(io.buf, area, area / 2, how_name[how]);
		one_pass(&io, true);
		/* Something else into the buffer; then what was written, from the file. */
		v_fill_all(io.buf, area, how, 1000 + gen, V_QUARTER);
		if (!io.fixed)
			wait_away(io.buf, area, area / 2, how_name[how]);
		else
			sleep_ms(20);
		one_pass(&io, false);
		CHECK_ALL(io.buf, area, how, gen, how_name[how]);
		v_fill_all(io.buf, area, how, gen + 1, V_QUARTER);
	}
	if (io.fixed) {
		CHECK(!io_uring_unregister_buffers(&io.ring), "io_uring_unregister_buffers");
		wait_away(io.buf, area, area / 2, "buffers that were fixed");
		CHECK_ALL(io.buf, area, how, passes, "buffers that were fixed");
	}
	io_uring_queue_exit(&io.ring);
	munmap(io.buf, LEN);
	printf("ok %s\n", how_name[how]);
	fflush(stdout);
}

/* O_DIRECT by threads, many rounds: the device writes into pages while they are looked for as victims. */
struct direct {
	int fd;
	unsigned id, rounds;
};

static void *direct_main(void *arg)
{
	struct direct *d = arg;
	size_t npages = 64, len = npages * V_PAGE;
	char *p = v_map(2 * len);
	off_t at = (off_t)(d->id * 4 * len);

	for (unsigned r = 0; r < d->rounds; r++) {
		v_fill_all(p, npages, d->id, r, V_RANDOM);
		CHECK(pwrite(d->fd, p, len, at) == (ssize_t)len, "O_DIRECT write");
		CHECK(pread(d->fd, p + len, len, at) == (ssize_t)len, "O_DIRECT read");
		for (size_t i = 0; i < npages; i++)
			CHECK(!v_check(p + len + i * V_PAGE, i, d->id, r, V_RANDOM), "O_DIRECT, round %u", r);
		if (r % 16 == 0)
			wait_away(p, npages, npages / 2, "O_DIRECT");
	}
	munmap(p, 2 * len);
	return NULL;
}

int main(void)
{
	char name[] = "/var/tmp/hmm-uring-XXXXXX";
	struct io_uring probe;
	struct hog hog;
	int fd = mkstemp(name), dfd, rc;

	area = long_run() ? 2048 : 512;
	CHECK(fd >= 0, "mkstemp");
	dfd = open(name, O_RDWR | O_DIRECT);
	unlink(name);
	rc = io_uring_queue_init(2, &probe, 0);
	if (rc) {
		printf("no io_uring here: error %d\n", -rc);
		return 77;
	}
	io_uring_queue_exit(&probe);
	CHECK(!ftruncate(fd, LEN), "ftruncate");
	hog_start(&hog, hog_mib());
	for (enum how how = PLAIN; how <= FIXED_SQPOLL; how++)
		run(how, fd, long_run() ? 20 : 2);
	if (dfd >= 0) {
		struct direct d[4];
		pthread_t t[4];

		for (unsigned i = 0; i < 4; i++) {
			d[i] = (struct direct){dfd, i, long_run() ? 1000 : 30};
			CHECK(!pthread_create(&t[i], NULL, direct_main, &d[i]), "pthread_create");
		}
		for (unsigned i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		puts("ok O_DIRECT");
		run(PLAIN, dfd, 2);
		run(FIXED, dfd, 2);
	} else {
		puts("SKIP: no O_DIRECT in /var/tmp");
	}
	hog_stop(&hog);
	return 0;
}
