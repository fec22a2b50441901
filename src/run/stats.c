/* SPDX-License-Identifier: MIT */
/* The figures of a run: the JSON of --stats and hmm stat, and the line of -v. */
#include "run/stats.h"

#include <inttypes.h>
#include <string.h>

#include "cli/json.h"
#include "hmm/internal.h"

struct sums {
	uint64_t away_pages, resident, ram;
};

static double seconds(struct hmm *h)
{
	return (double)(umm_now_ns() - h->start_ns) / 1e9;
}

static void sum_up(struct hmm *h, struct sums *s)
{
	*s = (struct sums){0};
	pthread_mutex_lock(&h->lock);
	for (struct hmm_mm *mm = h->mms; mm; mm = mm->next) {
		s->away_pages += atomic_load(&mm->radix.away);
		s->resident += mm->anon_pages * UMM_PAGE;
	}
	pthread_mutex_unlock(&h->lock);
	for (unsigned i = 0; i < h->chain.n; i++) {
		struct hmm_device_stats st = {0};

		h->chain.dev[i]->ops->stats(h->chain.dev[i], &st);
		s->ram += st.bytes_ram;
	}
}

/* When most was away: at the end nothing is. */
static double ratio(struct hmm *h)
{
	uint64_t stored = atomic_load(&h->stored_at_peak);

	return stored ? (double)atomic_load(&h->away_peak) * UMM_PAGE / (double)stored : 0;
}

void stats_json(struct hmm *h, FILE *f)
{
	uint64_t total = hmm_budget_measure(h);
	struct sums s;

	sum_up(h, &s);
	fprintf(f,
		"{\"budget_bytes\": %" PRIu64 ", \"total_bytes\": %" PRIu64 ", \"resident_bytes\": %" PRIu64
		", \"peak_bytes\": %" PRIu64 ", \"away_pages\": %" PRIu64 ", \"away_bytes\": %" PRIu64
		", \"peak_away_bytes\": %" PRIu64 ", \"store_ram_bytes\": %" PRIu64 ", \"pages_out\": %" PRIu64
		", \"pages_in\": %" PRIu64 ", \"pages_ahead\": %" PRIu64 ", \"clean_drops\": %" PRIu64
		", \"zero_filled\": %" PRIu64 ", \"faults\": %" PRIu64 ", \"held\": %" PRIu64
		", \"held_in_vain\": %" PRIu64 ", \"registrations\": %" PRIu64 ", \"unregistered\": %" PRIu64
		", \"moved_unsaid\": %" PRIu64 ", \"poisoned\": %" PRIu64 ", \"looks\": %" PRIu64
		", \"walks\": %" PRIu64 ", \"ratio\": %.2f, \"seconds\": %.3f, \"devices\": [",
		h->opt.budget, total, s.resident, atomic_load(&h->peak), s.away_pages, s.away_pages * UMM_PAGE,
		atomic_load(&h->away_peak) * UMM_PAGE, s.ram, atomic_load(&h->pages_out), atomic_load(&h->pages_in),
		atomic_load(&h->pages_ahead), atomic_load(&h->dropped_clean), atomic_load(&h->zero_filled),
		atomic_load(&h->faults), atomic_load(&h->held), atomic_load(&h->held_in_vain),
		atomic_load(&h->registrations), atomic_load(&h->unregistered), atomic_load(&h->unsaid),
		atomic_load(&h->poisoned), atomic_load(&h->looks), atomic_load(&h->walked), ratio(h), seconds(h));
	for (unsigned i = 0; i < h->chain.n; i++) {
		struct hmm_device_stats st = {0};

		h->chain.dev[i]->ops->stats(h->chain.dev[i], &st);
		fputs(i ? ", {\"spec\": " : "{\"spec\": ", f);
		cli_json_string(f, h->chain.dev[i]->spec);
		fprintf(f,
			", \"pages\": %" PRIu64 ", \"bytes_stored\": %" PRIu64 ", \"bytes_ram\": %" PRIu64
			", \"pages_same\": %" PRIu64 ", \"pages_raw\": %" PRIu64 ", \"copied_in\": %" PRIu64
			", \"copied_out\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"bytes_records\": %" PRIu64 "}",
			st.pages, st.bytes_stored, st.bytes_ram, st.pages_same, st.pages_raw, st.copied_in,
			st.copied_out, st.errors, st.bytes_records);
	}
	fputs("], \"spaces\": [", f);
	pthread_mutex_lock(&h->lock);
	for (struct hmm_mm *mm = h->mms; mm; mm = mm->next)
		fprintf(f,
			"%s{\"pid\": %d, \"resident_bytes\": %" PRIu64 ", \"away_pages\": %" PRIu64
			", \"pages_out\": %" PRIu64 ", \"pages_in\": %" PRIu64 ", \"faults\": %" PRIu64
			", \"active\": %s}",
			mm == h->mms ? "" : ", ", (int)mm->space->pid, mm->anon_pages * UMM_PAGE,
			atomic_load(&mm->radix.away), atomic_load(&mm->pages_out), atomic_load(&mm->pages_in),
			atomic_load(&mm->faults), atomic_load(&mm->armed) ? "true" : "false");
	pthread_mutex_unlock(&h->lock);
	fputs("]}\n", f);
}

static double mib(uint64_t bytes)
{
	return (double)bytes / (1 << 20);
}

void stats_line(struct hmm *h, char *buf, size_t len)
{
	snprintf(buf, len,
		 "peak %.1f MiB of %.1f MiB, at most %.1f MiB away, %" PRIu64 " pages out, %" PRIu64
		 " pages in, %" PRIu64 " faults, ratio %.2f, %.2f s",
		 mib(atomic_load(&h->peak)), mib(h->opt.budget), mib(atomic_load(&h->away_peak) * UMM_PAGE),
		 atomic_load(&h->pages_out), atomic_load(&h->pages_in), atomic_load(&h->faults), ratio(h), seconds(h));
}
