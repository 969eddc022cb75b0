/* Loaded into a server by LD_PRELOAD, this puts its clock REDISTEST_CLOCK_AHEAD_MS milliseconds ahead; monotonic clocks stay. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead;

__attribute__((constructor)) static void read_ahead(void)
{
	const char *text = getenv("REDISTEST_CLOCK_AHEAD_MS");
	if (text)
		ahead = atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
	int rc = syscall(SYS_clock_gettime, clock, ts);
	if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		long ns = ts->tv_nsec + ahead % 1000 * 1000000;
		ts->tv_sec += ahead / 1000;
		if (ns < 0) {
			ns += 1000000000;
			ts->tv_sec--;
		} else if (ns >= 1000000000) {
			ns -= 1000000000;
			ts->tv_sec++;
		}
		ts->tv_nsec = ns;
	}
	return rc;
}

int gettimeofday(struct timeval *tv, void *zone)
{
	struct timespec ts;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *t)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	if (t)
		*t = ts.tv_sec;
	return ts.tv_sec;
}
