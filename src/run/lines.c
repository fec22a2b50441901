/* SPDX-License-Identifier: MIT */
/* Lines for the user; see lines.h. */
#include "run/lines.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINES_MAX 1000u /* that wait; who does not read them does not want more */
#define TEXT_MAX 768u
#define GRACE_MS 1000

struct line {
	struct line *next;
	size_t len;
	char text[];
};

static void write_all(const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(STDERR_FILENO, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		/* Who shares our standard error may have made it so. */
		if (n < 0 && errno == EAGAIN && poll(&(struct pollfd){STDERR_FILENO, POLLOUT, 0}, 1, -1) == 1)
			continue;
		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

static void write_dropped(const struct lines *l, unsigned n)
{
	char text[TEXT_MAX];

	snprintf(text, sizeof(text), "%s: %u more lines were dropped, as nobody read them\n", l->who, n);
	write_all(text, strlen(text));
}

static void *lines_main(void *arg)
{
	struct lines *l = arg;

	pthread_mutex_lock(&l->lock);
	for (;;) {
		struct line *line = l->first;
		unsigned dropped = 0;

		if (!line) {
			pthread_cond_wait(&l->moved, &l->lock);
			continue;
		}
		l->first = line->next;
		if (!l->first)
			l->last = &l->first;
		l->n--;
		if (!l->first) {
			dropped = l->dropped;
			l->dropped = 0;
		}
		l->busy = true;
		pthread_mutex_unlock(&l->lock);
		write_all(line->text, line->len);
		free(line);
		if (dropped)
			write_dropped(l, dropped);
		pthread_mutex_lock(&l->lock);
		l->busy = false;
		pthread_cond_broadcast(&l->moved);
	}
	return NULL;
}

int lines_start(struct lines *l, const char *who)
{
	pthread_t t;
	int rc;

	*l = (struct lines){.who = who};
	l->last = &l->first;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->moved, NULL);
	rc = -pthread_create(&t, NULL, lines_main, l);
	if (!rc)
		pthread_detach(t);
	return rc;
}

void lines_say(struct lines *l, const char *fmt, ...)
{
	char text[TEXT_MAX];
	size_t len = (size_t)snprintf(text, sizeof(text), "%s: ", l->who);
	struct line *line;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text + len, sizeof(text) - len - 1, fmt, ap);
	va_end(ap);
	len = strlen(text);
	text[len++] = '\n';
	line = malloc(sizeof(*line) + len);
	if (!line)
		return;
	line->next = NULL;
	line->len = len;
	memcpy(line->text, text, len);
	pthread_mutex_lock(&l->lock);
	if (l->n < LINES_MAX) {
		*l->last = line;
		l->last = &line->next;
		l->n++;
		line = NULL;
		pthread_cond_broadcast(&l->moved);
	} else {
		l->dropped++;
	}
	pthread_mutex_unlock(&l->lock);
	free(line);
}

void lines_flush(struct lines *l)
{
	pthread_mutex_lock(&l->lock);
	while (l->first || l->busy)
		pthread_cond_wait(&l->moved, &l->lock);
	pthread_mutex_unlock(&l->lock);
}

void lines_end(struct lines *l)
{
	for (;;) {
		bool over;

		pthread_mutex_lock(&l->lock);
		over = !l->first && !l->busy;
		pthread_mutex_unlock(&l->lock);
		if (over || !poll(&(struct pollfd){STDERR_FILENO, POLLOUT, 0}, 1, GRACE_MS))
			return;
		usleep(1000); /* it is taken by the thread that writes */
	}
}
