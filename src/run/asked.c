/* SPDX-License-Identifier: MIT */
/* What `hmm stat` asks: figures, or to have everything back for good. */
#include "run/supervisor.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "run/stats.h"

/*
 * Everything comes back and stays.  A child that was forked meanwhile has what had
 * not yet come back to its parent: as long as any had something, there may be one
 * that was not on the list.
 */
static int restore_all(struct hmm *h, uint64_t *lost)
{
	uint64_t poisoned = atomic_load(&h->poisoned);
	uint32_t done = 0, latest = 0;
	bool again = true;
	int failed = 0;

	atomic_store(&h->resting, true);
	while (again) {
		struct hmm_mm **list;
		int n = hmm_mms_get(h, &list);

		if (n < 0)
			return n;
		umm_monitor_settle(h->monitor); /* the records of those on the list are complete */
		again = false;
		for (int i = 0; i < n; i++) {
			struct hmm_mm *mm = list[i];

			if (mm->id <= done)
				continue;
			latest = mm->id > latest ? mm->id : latest;
			again |= atomic_load(&mm->radix.away) > 0;
			atomic_fetch_add(&mm->rest, 1);
			pthread_mutex_lock(&mm->out_lock); /* what is on its way out gets there first */
			int rc = hmm_restore_all(mm);
			pthread_mutex_unlock(&mm->out_lock);
			if (rc && rc != -ESRCH) /* what has ended has nothing away */
				failed = rc;
		}
		done = latest;
		hmm_mms_put(list, (unsigned)n);
	}
	*lost = atomic_load(&h->poisoned) - poisoned;
	return failed;
}

#define STAT_CHUNK 16384u
#define STAT_SECONDS 10

struct stat_job {
	struct supervisor *s;
	int sock;
	uint32_t what;
};

/*
 * On a thread of its own: the tree must be served meanwhile, however long it
 * takes or the client does not read.  The text is complete before any of it is
 * sent, no lock may be held for a client; and a packet takes no more than fits
 * a socket's buffer.
 */
static void *stat_main(void *arg)
{
	struct stat_job *job = arg;
	struct hmm *h = job->s->h;
	char *text = NULL;
	size_t len = 0, at = 0;
	uint64_t lost = 0;
	int rc = job->what == WIRE_STAT_RESTORE ? restore_all(h, &lost) : 0;
	FILE *f = open_memstream(&text, &len);

	if (f) {
		if (rc)
			fprintf(f, "%cnot all has come back: %s\n", WIRE_STAT_FAILED, strerror(-rc));
		else if (lost)
			fprintf(f, "%c%" PRIu64 " pages are lost: no device can give them back\n", WIRE_STAT_FAILED,
				lost);
		else
			stats_json(h, f);
		if (fclose(f))
			len = 0;
	}
	while (at < len) {
		ssize_t n = send(job->sock, text + at, len - at < STAT_CHUNK ? len - at : STAT_CHUNK, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		at += (size_t)n;
	}
	free(text);
	close(job->sock);
	free(job);
	return NULL;
}

void stat_client(struct supervisor *s, int sock, const struct wire_stat *q)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct stat_job *job = NULL;
	pthread_t t;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) || (cred.uid && cred.uid != getuid()))
		goto refuse;
	job = malloc(sizeof(*job));
	if (!job)
		goto refuse;
	*job = (struct stat_job){s, sock, q->what};
	/* Who does not read what it asked for is not waited for. */
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){.tv_sec = STAT_SECONDS}, sizeof(struct timeval));
	if (pthread_create(&t, NULL, stat_main, job))
		goto refuse;
	pthread_detach(t);
	return;
refuse:
	free(job);
	close(sock);
}
