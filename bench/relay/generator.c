/* The load of `make bench-relay`: all clients and all transceivers in one process, both ways at once.
 *
 *     generator PLAN window IN_FLIGHT SECONDS BUNDLE BUNDLED DIRECT [PID...]     a full relay
 *     generator PLAN ticks PACKETS_PER_SECOND ...                                that rate, asleep between
 *     generator PLAN spin PACKETS_PER_SECOND ...                                 that rate, to measure latency
 *
 * PLAN is written by load.py. Two wildcard sockets are inherited: one is every client, the other every
 * transceiver; which of them sends is said by IP_PKTINFO, so one sendmmsg serves many flows. Half of the
 * packets goes each way. A transceiver sends BUNDLE frames at once (it may be a fraction: the mean), as one
 * datagram if BUNDLED, else as one each. DIRECT: clients send to clients, transceivers to transceivers:
 * the same datagrams with no relay between.
 *
 * Prints one JSON object: what was sent and received in SECONDS after a short start, the machine's idle time
 * (/proc/stat, in seconds), CPU seconds of the generator and of all PIDs, latency percentiles in microseconds,
 * and how many packets of the whole run never came. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, SLOT = 2048, MAX_FRAMES = 8, MAX_PIDS = 16, CLIENTS = 0, TRANSCEIVERS = 1 };
#define TICK_NS 200000        /* the sleep between turns: a fraction of what a full relay has in flight */
#define START_NS 150000000    /* not measured: caches, queues and the relay's batches settle */
#define LOST_NS 50000000      /* what has not come back by then is lost, and others take its place */
#define BUCKET_NS 100
#define BUCKETS 1000000       /* up to 100 ms */

struct head { uint32_t magic, flows, transceivers, prefix, framed, size, sockets[2]; };
struct transceiver { uint32_t ip; uint8_t header[12]; };
struct address { uint32_t ip; uint16_t port, unused; };
struct flow {
    uint32_t ip, transceiver;
    struct address relay, back; /* where its client and its transceiver send to */
    uint8_t prefix[4];          /* before its client's payload */
    uint8_t frame[12];          /* before its transceiver's payload: 9 bytes */
};
struct mark { uint32_t run, flow; uint64_t sequence, stamp; }; /* in each payload, behind an RTP header */
enum { MARK = 12, FRAME = 9, LINK = 10 };

struct control { _Alignas(8) char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))]; };

/* One direction: what one side sends and the other receives. */
struct direction {
    uint64_t sent, datagrams_out, received, datagrams_in, newest;
    uint32_t next;         /* place in `order` */
    uint32_t *histogram;
};

static struct head head;
static struct transceiver *transceivers;
static struct flow *flows;
static uint32_t *order[2];       /* flows as clients send, and as transceivers do */
static uint8_t *packets[2];      /* each flow's packet, by side */
static struct control *controls[2];
static struct sockaddr_in *targets[2];
static struct direction directions[2];
static uint32_t run_id;
static double bundle, carried;
static int bundled, direct, stamps;
static uint64_t last_arrival;
static uint64_t random_state = 88172645463325252ull;

static uint64_t nanoseconds(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now)) return 0;
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static uint64_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) fail("calloc");
    return memory;
}

/* -------------------------------------------------------------------------------------------- the plan */

static void read_plan(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fread(&head, sizeof head, 1, file) != 1 || head.magic != 0x76677231) fail(path);
    transceivers = allocate(head.transceivers, sizeof *transceivers);
    flows = allocate(head.flows, sizeof *flows);
    if (fread(transceivers, sizeof *transceivers, head.transceivers, file) != head.transceivers) fail(path);
    if (fread(flows, sizeof *flows, head.flows, file) != head.flows) fail(path);
    fclose(file);
}

static uint32_t lead(int side) { /* bytes before the payload in a flow's packet */
    return side == CLIENTS ? head.prefix : head.framed ? FRAME : 0;
}

static void prepare(int side) {
    struct sockaddr_in own = {0};
    socklen_t length = sizeof own;
    if (getsockname(head.sockets[side], (struct sockaddr *)&own, &length)) fail("getsockname");
    packets[side] = allocate(head.flows, SLOT);
    controls[side] = allocate(head.flows, sizeof **controls);
    targets[side] = allocate(head.flows, sizeof **targets);
    order[side] = allocate(head.flows, sizeof **order);
    directions[side].histogram = allocate(BUCKETS, sizeof(uint32_t));
    for (uint32_t index = 0; index < head.flows; index++) {
        struct flow *flow = &flows[index];
        uint8_t *packet = packets[side] + (size_t)index * SLOT;
        uint32_t source = side == CLIENTS ? flow->ip : transceivers[flow->transceiver].ip;
        memcpy(packet, side == CLIENTS ? flow->prefix : flow->frame, lead(side));
        memset(packet + lead(side), 0x55, head.size);
        packet[lead(side)] = 0x80;
        packet[lead(side) + 1] = 0x60;
        struct cmsghdr *control = (struct cmsghdr *)controls[side][index].bytes;
        struct in_pktinfo info = {.ipi_spec_dst = {source}};
        control->cmsg_level = IPPROTO_IP;
        control->cmsg_type = IP_PKTINFO;
        control->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(control), &info, sizeof info);
        struct address to = side == CLIENTS ? flow->relay : flow->back;
        if (direct) to = (struct address){source, own.sin_port, 0};
        targets[side][index] = (struct sockaddr_in){AF_INET, to.port, {to.ip}, {0}};
        order[side][index] = index;
    }
    for (uint32_t index = head.flows - 1; index; index--) {
        uint32_t other = next_random() % (index + 1), kept = order[side][index];
        order[side][index] = order[side][other];
        order[side][other] = kept;
    }
    if (side == TRANSCEIVERS) { /* the frames of one bundle are one transceiver's */
        uint32_t *sorted = allocate(head.flows, sizeof *sorted), used = 0;
        for (uint32_t owner = 0; owner < head.transceivers; owner++)
            for (uint32_t index = 0; index < head.flows; index++)
                if (flows[order[side][index]].transceiver == owner) sorted[used++] = order[side][index];
        memcpy(order[side], sorted, head.flows * sizeof *sorted);
        free(sorted);
    }
}

/* --------------------------------------------------------------------------------------------- sending */

static uint8_t *mark(int side, uint32_t index) {
    struct direction *direction = &directions[side];
    uint8_t *packet = packets[side] + (size_t)index * SLOT;
    struct mark mark = {run_id, index, ++direction->sent, nanoseconds(CLOCK_REALTIME)};
    memcpy(packet + lead(side) + MARK, &mark, sizeof mark);
    return packet;
}

static void transmit(int side, struct mmsghdr *messages, int count) {
    directions[side].datagrams_out += count;
    for (int done = 0; done < count;) {
        int result = sendmmsg(head.sockets[side], messages + done, count - done, MSG_DONTWAIT);
        if (result > 0) done += result;
        else if (errno != EINTR) done++; /* it counts as sent and is missing among the received */
    }
}

static void address_to(struct mmsghdr *message, int side, uint32_t index, struct iovec *pieces, int count) {
    message->msg_hdr = (struct msghdr){&targets[side][index], sizeof(struct sockaddr_in), pieces, count,
        controls[side][index].bytes, sizeof controls[side][index].bytes, 0};
}

static void send_from_clients(uint64_t wanted) {
    static struct mmsghdr messages[BATCH];
    static struct iovec pieces[BATCH];
    struct direction *direction = &directions[CLIENTS];
    while (wanted) {
        int count = wanted < BATCH ? wanted : BATCH;
        for (int place = 0; place < count; place++) {
            uint32_t index = order[CLIENTS][direction->next++ % head.flows];
            pieces[place] = (struct iovec){mark(CLIENTS, index), head.prefix + head.size};
            address_to(&messages[place], CLIENTS, index, &pieces[place], 1);
        }
        transmit(CLIENTS, messages, count);
        wanted -= count;
    }
}

/* The flow whose frame is sent next: each transceiver has its turn and its own place among its flows. */
static uint32_t turn, *places;

static uint32_t flow_of_transceiver(uint32_t owner) {
    uint32_t share = head.flows / head.transceivers;
    return order[TRANSCEIVERS][owner * share + places[owner]++ % share];
}

static void send_from_transceivers(int64_t wanted) {
    static struct mmsghdr messages[BATCH];
    static struct iovec pieces[BATCH * (1 + MAX_FRAMES)];
    int count = 0, used = 0;
    while (wanted > 0) {
        uint32_t owner = turn++ % head.transceivers;
        carried += bundle;
        int frames = carried < 1 ? 1 : carried;
        carried -= frames;
        for (int frame = 0; frame < frames; frame++) {
            uint32_t index = flow_of_transceiver(owner);
            if (!bundled || frame == 0) {
                if (count == BATCH) {
                    transmit(TRANSCEIVERS, messages, count);
                    count = used = 0;
                }
                address_to(&messages[count++], TRANSCEIVERS, index, &pieces[used], 0);
                if (head.framed) {
                    pieces[used++] = (struct iovec){transceivers[owner].header, LINK};
                    messages[count - 1].msg_hdr.msg_iovlen = 1;
                }
            }
            uint32_t length = lead(TRANSCEIVERS) + head.size;
            pieces[used++] = (struct iovec){mark(TRANSCEIVERS, index), length};
            messages[count - 1].msg_hdr.msg_iovlen++;
        }
        wanted -= frames;
    }
    transmit(TRANSCEIVERS, messages, count);
}

/* ------------------------------------------------------------------------------------------- receiving */

static void arrived(int side, const uint8_t *payload, uint64_t when) {
    struct direction *direction = &directions[direct ? side : !side];
    struct mark mark;
    memcpy(&mark, payload + MARK, sizeof mark);
    if (mark.run != run_id) return;
    direction->received++;
    if (mark.sequence > direction->newest) direction->newest = mark.sequence;
    uint64_t bucket = (when > mark.stamp ? when - mark.stamp : 0) / BUCKET_NS;
    direction->histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
}

static void take(int side, const uint8_t *data, uint32_t length, uint64_t when) {
    struct direction *direction = &directions[direct ? side : !side];
    if (side == CLIENTS || !head.framed) {
        uint32_t before = side == CLIENTS ? head.prefix : 0;
        if (length != before + head.size) return;
        direction->datagrams_in++;
        arrived(side, data + before, when);
        return;
    }
    if (data[0] >> 4 != 1) return; /* what relays say to transceivers about themselves */
    direction->datagrams_in++;
    for (uint32_t at = LINK; at + FRAME + head.size <= length; at += FRAME + head.size)
        arrived(side, data + at + FRAME, when);
}

static int receive(int side) {
    static uint8_t memory[BATCH][SLOT];
    static char extra[BATCH][64];
    static struct iovec pieces[BATCH];
    static struct mmsghdr messages[BATCH];
    int total = 0, count;
    do {
        for (int place = 0; place < BATCH; place++) {
            pieces[place] = (struct iovec){memory[place], SLOT};
            messages[place].msg_hdr = (struct msghdr){NULL, 0, &pieces[place], 1, extra[place],
                stamps ? sizeof extra[place] : 0, 0};
        }
        count = recvmmsg(head.sockets[side], messages, BATCH, MSG_DONTWAIT, NULL);
        uint64_t now = nanoseconds(CLOCK_REALTIME);
        for (int place = 0; place < count; place++) {
            uint64_t when = now;
            struct cmsghdr *control = CMSG_FIRSTHDR(&messages[place].msg_hdr);
            if (stamps && control && control->cmsg_type == SO_TIMESTAMPNS) {
                struct timespec stamp;
                memcpy(&stamp, CMSG_DATA(control), sizeof stamp);
                when = stamp.tv_sec * 1000000000ull + stamp.tv_nsec;
            }
            take(side, memory[place], messages[place].msg_len, when);
        }
        if (count > 0) total += count;
    } while (count == BATCH);
    if (total) last_arrival = nanoseconds(CLOCK_MONOTONIC);
    return total;
}

/* ------------------------------------------------------------------------------------------- the load */

static void until(uint64_t when) {
    struct timespec then = {when / 1000000000, when % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &then, NULL);
}

static void keep_in_flight(uint64_t window, uint64_t end) {
    struct direction *up = &directions[CLIENTS], *down = &directions[TRANSCEIVERS];
    for (uint64_t now, tick = nanoseconds(CLOCK_MONOTONIC); (now = nanoseconds(CLOCK_MONOTONIC)) < end;) {
        receive(CLIENTS);
        receive(TRANSCEIVERS);
        if (now > last_arrival + LOST_NS) {
            up->newest = up->sent;
            down->newest = down->sent;
            last_arrival = now;
        }
        uint64_t flying = up->sent - up->newest + down->sent - down->newest;
        if (flying < window) {
            /* As many each way: a relay that likes one socket better must not be spared the other. */
            uint64_t pairs = (window - flying) / 2;
            send_from_clients(pairs);
            send_from_transceivers(up->sent - down->sent);
        }
        tick = tick + TICK_NS > now ? tick + TICK_NS : now;
        until(tick);
    }
}

static void keep_rate(double rate, uint64_t end) {
    uint64_t start = nanoseconds(CLOCK_MONOTONIC);
    uint64_t before[2] = {directions[0].sent, directions[1].sent};
    for (uint64_t now, tick = start; (now = nanoseconds(CLOCK_MONOTONIC)) < end;) {
        int64_t due = (now - start) * rate / 2e9;
        send_from_clients(due - (int64_t)(directions[CLIENTS].sent - before[CLIENTS]));
        send_from_transceivers(due - (int64_t)(directions[TRANSCEIVERS].sent - before[TRANSCEIVERS]));
        receive(CLIENTS);
        receive(TRANSCEIVERS);
        tick = tick + TICK_NS > now ? tick + TICK_NS : now;
        until(tick);
    }
}

/* Exponential gaps: many calls that know nothing of each other. */
static uint64_t gap(double mean) {
    return -log(((next_random() >> 11) + 1) / 9007199254740993.0) * mean;
}

static void keep_rate_awake(double rate, uint64_t end) {
    uint64_t now = nanoseconds(CLOCK_MONOTONIC), client_due = now, transceiver_due = now;
    for (; (now = nanoseconds(CLOCK_MONOTONIC)) < end;) {
        if (now >= client_due) {
            send_from_clients(1);
            client_due += gap(2e9 / rate);
        }
        if (now >= transceiver_due) {
            uint64_t sent = directions[TRANSCEIVERS].sent;
            send_from_transceivers(1);
            transceiver_due += gap((directions[TRANSCEIVERS].sent - sent) * 2e9 / rate);
        }
        receive(CLIENTS);
        receive(TRANSCEIVERS);
    }
}

/* ------------------------------------------------------------------------------------------ the figures */

struct figures { double wall, idle, generator, relays[MAX_PIDS]; };

static double machine_idle(void) {
    FILE *file = fopen("/proc/stat", "r");
    unsigned long long idle, wait, stolen; /* by the host of a virtual machine */
    if (!file || fscanf(file, "cpu %*u %*u %*u %llu %llu %*u %*u %llu", &idle, &wait, &stolen) != 3)
        fail("/proc/stat");
    fclose(file);
    return (double)(idle + wait + stolen) / sysconf(_SC_CLK_TCK);
}

static void look(struct figures *figures, char **pids, int count) {
    figures->wall = nanoseconds(CLOCK_MONOTONIC) / 1e9;
    figures->idle = machine_idle();
    figures->generator = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) / 1e9;
    for (int index = 0; index < count; index++) {
        clockid_t clock;
        int missing = clock_getcpuclockid(atoi(pids[index]), &clock);
        figures->relays[index] = missing ? 0 : nanoseconds(clock) / 1e9;
    }
}

static double percentile(const uint32_t *histogram, double share) {
    uint64_t total = 0, seen = 0;
    for (int bucket = 0; bucket < BUCKETS; bucket++) total += histogram[bucket];
    for (int bucket = 0; bucket < BUCKETS; bucket++)
        if ((seen += histogram[bucket]) > share * total) return (bucket + 0.5) * BUCKET_NS / 1000.0;
    return 0;
}

static void print_latency(const char *name, const uint32_t *histogram) {
    printf(", \"%s\": {\"p50\": %.2f, \"p99\": %.2f, \"p999\": %.2f}", name, percentile(histogram, 0.5),
        percentile(histogram, 0.99), percentile(histogram, 0.999));
}

static void print(const struct figures *from, const struct figures *to, int pids, uint64_t lost) {
    struct direction *up = &directions[CLIENTS], *down = &directions[TRANSCEIVERS];
    double relays = 0;
    for (int index = 0; index < pids; index++) relays += to->relays[index] - from->relays[index];
    printf("{\"seconds\": %.6f, \"idle\": %.3f, \"generator\": %.6f, \"relay\": %.6f, \"lost\": %lu",
        to->wall - from->wall, to->idle - from->idle, to->generator - from->generator, relays, lost);
    printf(", \"up\": {\"sent\": %lu, \"received\": %lu, \"datagrams_in\": %lu, \"datagrams_out\": %lu}",
        up->sent, up->received, up->datagrams_in, up->datagrams_out);
    printf(", \"down\": {\"sent\": %lu, \"received\": %lu, \"datagrams_in\": %lu, \"datagrams_out\": %lu}",
        down->sent, down->received, down->datagrams_in, down->datagrams_out);
    print_latency("latency_up", up->histogram);
    print_latency("latency_down", down->histogram);
    for (int bucket = 0; bucket < BUCKETS; bucket++) up->histogram[bucket] += down->histogram[bucket];
    print_latency("latency", up->histogram);
    printf("}\n");
}

/* What is still under way when the time is over is not lost. */
static uint64_t missing_in_the_end(void) {
    uint64_t sent = directions[0].sent + directions[1].sent, end = nanoseconds(CLOCK_MONOTONIC) + 4 * LOST_NS;
    while (directions[0].received + directions[1].received < sent && nanoseconds(CLOCK_MONOTONIC) < end) {
        receive(CLIENTS);
        receive(TRANSCEIVERS);
        until(nanoseconds(CLOCK_MONOTONIC) + TICK_NS);
    }
    return sent - directions[0].received - directions[1].received;
}

static void forget(struct direction *direction, struct direction *before) {
    *before = *direction;
    memset(direction->histogram, 0, BUCKETS * sizeof(uint32_t));
}

static void count_since(struct direction *direction, const struct direction *before) {
    direction->sent -= before->sent;
    direction->received -= before->received;
    direction->datagrams_in -= before->datagrams_in;
    direction->datagrams_out -= before->datagrams_out;
}

int main(int count, char **arguments) {
    if (count < 8) {
        fprintf(stderr, "usage: see the head of generator.c\n");
        return 2;
    }
    const char *mode = arguments[2];
    double amount = atof(arguments[3]), seconds = atof(arguments[4]);
    bundle = atof(arguments[5]);
    bundled = atoi(arguments[6]);
    direct = atoi(arguments[7]);
    if (!(bundle >= 1 && bundle <= MAX_FRAMES) || amount <= 0) {
        fprintf(stderr, "BUNDLE is 1 to %d, and the load is not 0\n", MAX_FRAMES);
        return 2;
    }
    read_plan(arguments[1]);
    run_id = nanoseconds(CLOCK_MONOTONIC) >> 10;
    prepare(CLIENTS);
    prepare(TRANSCEIVERS);
    places = allocate(head.transceivers, sizeof *places);
    prctl(PR_SET_TIMERSLACK, 1);
    stamps = !strcmp(mode, "spin");
    for (int side = 0; side < 2; side++) /* the time at which the kernel had it, whatever we are doing */
        if (setsockopt(head.sockets[side], SOL_SOCKET, SO_TIMESTAMPNS, &stamps, sizeof stamps)) fail("stamps");

    struct figures from, to;
    struct direction before[2] = {0}, after[2];
    for (int measured = 0; measured < 2; measured++) {
        uint64_t end = nanoseconds(CLOCK_MONOTONIC) + (measured ? (uint64_t)(seconds * 1e9) : START_NS);
        if (measured) {
            forget(&directions[0], &before[0]);
            forget(&directions[1], &before[1]);
            look(&from, arguments + 8, count - 8);
        }
        last_arrival = nanoseconds(CLOCK_MONOTONIC);
        if (!strcmp(mode, "window")) keep_in_flight(amount, end);
        else if (!strcmp(mode, "ticks")) keep_rate(amount, end);
        else keep_rate_awake(amount, end);
    }
    look(&to, arguments + 8, count - 8);
    memcpy(after, directions, sizeof after);
    uint64_t lost = missing_in_the_end();
    memcpy(directions, after, sizeof after);
    count_since(&directions[0], &before[0]);
    count_since(&directions[1], &before[1]);
    print(&from, &to, count - 8, lost);
    stamps = 0;
    for (int side = 0; side < 2; side++)
        setsockopt(head.sockets[side], SOL_SOCKET, SO_TIMESTAMPNS, &stamps, sizeof stamps);
    return 0;
}
