mod behaviour;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use super::*;

fn everything() -> Rules {
    Rules {
        ipv6: true,
        dns: DnsCapture::Captured,
        inbound: InboundCapture::Captured,
        virtual_interfaces: ["tap0", "k6t+"].map(|name| InterfaceName::parse(name).unwrap()).to_vec(),
    }
}

/// What an ordinary pod has.
fn ordinary() -> Rules {
    Rules { virtual_interfaces: Vec::new(), ..everything() }
}

/// Runs a command line inside `netns` and returns what it printed.
fn sh(netns: &Netns, line: &str) -> String {
    let output = netns.run(|| Command::new("sh").args(["-c", line]).output()).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{line}`: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// A namespace with `lo` up, as every pod has it.
fn pod() -> Netns {
    let netns = Netns::create().expect("tests run as root: making a network namespace needs CAP_SYS_ADMIN");
    sh(&netns, "ip link set lo up");
    netns
}

/// Rules, ip rules and routes of a namespace, without dates and counters.
fn everything_in(netns: &Netns) -> String {
    sh(
        netns,
        "iptables-save | grep -v '^#'; ip6tables-save | grep -v '^#'; ip -4 rule; ip -6 rule; \
         ip -4 route show table all; ip -6 route show table all",
    )
}

fn rows(rules: &Rules, family: Family, table: Table, chain: Chain) -> Vec<String> {
    let plan = rules.plan();
    let rows = plan.rules(family).iter().filter(|rule| rule.table == table && rule.chain == chain);
    rows.map(|rule| rule.spec.clone()).collect()
}

#[test]
fn every_table_is_entered_from_the_kernels_chains() {
    for family in Family::ALL {
        for table in Table::ALL {
            assert_eq!(rows(&everything(), family, table, Chain::Prerouting), ["-j ISTIO_PRERT"]);
            assert_eq!(rows(&everything(), family, table, Chain::Output), ["-j ISTIO_OUTPUT"]);
        }
    }
}

#[test]
fn the_mangle_rows_carry_the_proxys_mark_over_to_replies() {
    let rules = everything();
    assert_eq!(
        rows(&rules, Family::V4, Table::Mangle, Chain::OurPrerouting),
        ["-m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff"]
    );
    assert_eq!(
        rows(&rules, Family::V4, Table::Mangle, Chain::OurOutput),
        ["-m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff \
             --ctmask 0xffffffff"]
    );
}

#[test]
fn the_nat_rows_are_those_of_the_reference_in_its_order() {
    for (family, lo, probe) in [
        (Family::V4, "127.0.0.1/32", "169.254.7.127/32"),
        (Family::V6, "::1/128", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128"),
    ] {
        assert_eq!(
            rows(&everything(), family, Table::Nat, Chain::OurPrerouting),
            [
                "-i tap0 -p tcp -j REDIRECT --to-ports 15001".to_owned(),
                "-i tap0 -p tcp -j RETURN".to_owned(),
                "-i k6t+ -p tcp -j REDIRECT --to-ports 15001".to_owned(),
                "-i k6t+ -p tcp -j RETURN".to_owned(),
                format!("-s {probe} -p tcp -m tcp -j ACCEPT"),
                format!(
                    "! -d {lo} -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff \
                     -j REDIRECT --to-ports 15006"
                ),
            ]
        );
        assert_eq!(
            rows(&everything(), family, Table::Nat, Chain::OurOutput),
            [
                format!("-d {probe} -p tcp -m tcp -j ACCEPT"),
                "! -o lo -p udp -m udp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053"
                    .to_owned(),
                format!(
                    "! -d {lo} -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff \
                     -j REDIRECT --to-ports 15053"
                ),
                "-p tcp -m mark --mark 0x111/0xfff -j ACCEPT".to_owned(),
                format!("! -d {lo} -o lo -j ACCEPT"),
                format!("! -d {lo} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001"),
            ]
        );
    }
}

#[test]
fn the_raw_rows_give_the_proxys_queries_a_zone_of_their_own() {
    let rules = everything();
    assert_eq!(
        rows(&rules, Family::V4, Table::Raw, Chain::OurOutput),
        ["-p udp -m udp --dport 53 -m mark --mark 0x539/0xfff -j CT --zone 1"]
    );
    assert_eq!(
        rows(&rules, Family::V4, Table::Raw, Chain::OurPrerouting),
        ["-p udp -m udp --sport 53 -m mark ! --mark 0x539/0xfff -j CT --zone 1"]
    );
}

#[test]
fn without_dns_capture_no_row_speaks_of_port_53_and_raw_is_not_touched() {
    let plan = Rules { dns: DnsCapture::Left, ..everything() }.plan();
    for family in Family::ALL {
        assert!(plan.rules(family).iter().all(|rule| rule.table != Table::Raw && !rule.spec.contains("53 ")));
        assert!(!plan.text(family).contains("*raw"));
    }
}

#[test]
fn ingress_mode_leaves_inbound_plaintext_alone_and_keeps_the_chain() {
    let rules = Rules { inbound: InboundCapture::Bypassed, ..ordinary() };
    assert!(rows(&rules, Family::V4, Table::Nat, Chain::OurPrerouting).is_empty());
    assert_eq!(rows(&rules, Family::V4, Table::Nat, Chain::Prerouting), ["-j ISTIO_PRERT"]);
    assert_eq!(rows(&rules, Family::V4, Table::Mangle, Chain::OurPrerouting).len(), 1);
}

#[test]
fn without_ipv6_there_is_no_ipv6_text() {
    let plan = Rules { ipv6: false, ..everything() }.plan();
    assert_eq!(plan.text(Family::V6), "");
    assert!(plan.text(Family::V4).starts_with("*mangle\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n"));
}

#[test]
fn a_name_that_would_be_read_as_something_else_names_no_interface() {
    for bad in ["", "-j", "a b", "eth0\n-A", "\"x\"", "!tap", "..", ".", "sixteen-letters-", "eth0:1", "é"] {
        assert!(InterfaceName::parse(bad).is_err(), "{bad:?}");
    }
    for good in ["eth0", "tap+", "veth1234567890a", "k6t-net1", "a.100", "x@if3"] {
        assert_eq!(InterfaceName::parse(good).unwrap().to_string(), good);
    }
}

#[test]
fn installing_twice_is_installing_once() {
    let (netns, tools) = (pod(), Tools::default());
    let rules = everything();
    assert!(!rules.verify(&netns, &tools).unwrap().is_empty());
    rules.install(&netns, &tools).unwrap();
    assert_eq!(rules.verify(&netns, &tools).unwrap(), []);
    let once = everything_in(&netns);
    rules.install(&netns, &tools).unwrap();
    assert_eq!(everything_in(&netns), once);
}

#[test]
fn the_legacy_backend_is_served_too() {
    let multi = Path::new("/usr/sbin/xtables-legacy-multi");
    if !multi.exists() {
        println!("did not run: {} is not installed", multi.display());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for name in ["iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"] {
        symlink(multi, directory.path().join(name)).unwrap();
    }
    let tools = Tools::looking_in([directory.path(), Path::new("/usr/sbin"), Path::new("/sbin")]);
    let (netns, rules) = (pod(), everything());
    rules.install(&netns, &tools).unwrap();
    assert_eq!(rules.verify(&netns, &tools).unwrap(), []);
    let jumps = sh(&netns, "iptables-legacy-save | grep -c -- '-A PREROUTING -j ISTIO_PRERT'");
    assert_eq!(jumps.trim(), "3");
    sh(&netns, "iptables-legacy -t nat -D ISTIO_PRERT 1");
    assert_eq!(rules.verify(&netns, &tools).unwrap().len(), 1);
    rules.install(&netns, &tools).unwrap();
    assert_eq!(rules.verify(&netns, &tools).unwrap(), []);
    rules.remove(&netns, &tools).unwrap();
    assert!(!sh(&netns, "iptables-legacy-save; ip6tables-legacy-save").contains("ISTIO"));
}

#[test]
fn each_single_rule_that_goes_missing_is_found_and_mended() {
    let (netns, tools) = (pod(), Tools::default());
    let rules = everything();
    rules.install(&netns, &tools).unwrap();
    let installed = everything_in(&netns);
    let plan = rules.plan();
    for family in Family::ALL {
        let iptables = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        for rule in plan.rules(family) {
            sh(&netns, &format!("{iptables} -t {} -D {} {}", rule.table, rule.chain, rule.spec));
            let found = rules.verify(&netns, &tools).unwrap();
            assert_eq!(found, [Deviation::MissingRule(family, rule.clone())]);
            rules.install(&netns, &tools).unwrap();
        }
    }
    assert_eq!(everything_in(&netns), installed);
}

#[test]
fn a_missing_ip_rule_or_route_is_found_and_mended() {
    let (netns, tools) = (pod(), Tools::default());
    let rules = ordinary();
    rules.install(&netns, &tools).unwrap();
    for (break_it, expected) in [
        ("ip -4 rule del pref 32764", Deviation::MissingIpRule(Family::V4)),
        ("ip -6 rule del pref 32764", Deviation::MissingIpRule(Family::V6)),
        ("ip -4 route flush table 100", Deviation::MissingRoute(Family::V4)),
        ("ip -6 route flush table 100", Deviation::MissingRoute(Family::V6)),
    ] {
        sh(&netns, break_it);
        assert_eq!(rules.verify(&netns, &tools).unwrap(), [expected], "{break_it}");
        rules.install(&netns, &tools).unwrap();
        assert_eq!(rules.verify(&netns, &tools).unwrap(), []);
    }
}

#[test]
fn a_narrower_ip_rule_does_not_pass_for_ours() {
    let (netns, tools) = (pod(), Tools::default());
    ordinary().install(&netns, &tools).unwrap();
    sh(&netns, "ip rule del pref 32764; ip rule add iif lo fwmark 0x111/0xfff pref 32764 lookup 100");
    assert_eq!(ordinary().verify(&netns, &tools).unwrap(), [Deviation::MissingIpRule(Family::V4)]);
}

#[test]
fn rules_too_many_or_out_of_order_are_found_and_mended() {
    let (netns, tools) = (pod(), Tools::default());
    let rules = ordinary();
    rules.install(&netns, &tools).unwrap();
    let installed = everything_in(&netns);
    let unexpected = |table, chain: &str, spec: &str| Deviation::UnexpectedRule {
        family: Family::V4,
        table,
        chain: chain.to_owned(),
        spec: spec.to_owned(),
    };
    for (break_it, expected) in [
        ("iptables -t nat -I ISTIO_OUTPUT -j RETURN", unexpected(Table::Nat, "ISTIO_OUTPUT", "-j RETURN")),
        ("iptables -t nat -A OUTPUT -j ISTIO_OUTPUT", unexpected(Table::Nat, "OUTPUT", "-j ISTIO_OUTPUT")),
        (
            "iptables -t mangle -A FORWARD -p udp -j ISTIO_PRERT",
            unexpected(Table::Mangle, "FORWARD", "-p udp -j ISTIO_PRERT"),
        ),
        (
            "iptables -t nat -D ISTIO_OUTPUT 1; \
             iptables -t nat -A ISTIO_OUTPUT -d 169.254.7.127 -p tcp -j ACCEPT",
            Deviation::OutOfOrder(Family::V4, Table::Nat, Chain::OurOutput),
        ),
    ] {
        sh(&netns, break_it);
        assert_eq!(rules.verify(&netns, &tools).unwrap(), [expected], "{break_it}");
        rules.install(&netns, &tools).unwrap();
        assert_eq!(everything_in(&netns), installed, "{break_it}");
    }
}

#[test]
fn what_another_plan_left_is_removed() {
    let (netns, tools) = (pod(), Tools::default());
    everything().install(&netns, &tools).unwrap();
    let fewer = Rules { ipv6: false, dns: DnsCapture::Left, ..ordinary() };
    let found = fewer.verify(&netns, &tools).unwrap();
    assert!(found.contains(&Deviation::UnexpectedChain(Family::V4, Table::Raw, Chain::OurOutput)));
    assert!(found.contains(&Deviation::UnexpectedIpRule(Family::V6)));
    assert!(found.contains(&Deviation::UnexpectedRoute(Family::V6)));
    fewer.install(&netns, &tools).unwrap();
    assert_eq!(fewer.verify(&netns, &tools).unwrap(), []);
    assert!(!sh(&netns, "ip6tables-save; iptables-save -t raw").contains("ISTIO"));
}

/// Rules of somebody else in every table and in both families, so that each table exists beforehand.
fn with_foreign_rules(netns: &Netns) {
    for iptables in ["iptables", "ip6tables"] {
        for table in ["mangle", "nat", "raw"] {
            let comment = "says \\\"-j ISTIO_OUTPUT\\\"";
            sh(netns, &format!("{iptables} -t {table} -N THEIRS"));
            sh(
                netns,
                &format!(
                    "{iptables} -t {table} -A OUTPUT -p icmp -m comment --comment \"{comment}\" -j THEIRS"
                ),
            );
            sh(netns, &format!("{iptables} -t {table} -A PREROUTING -p sctp -j ACCEPT"));
        }
    }
    sh(netns, "ip rule add pref 32763 fwmark 7 lookup 7; ip route add local 192.0.2.0/24 dev lo table 100");
    sh(
        netns,
        "ip -6 rule add pref 32763 fwmark 7 lookup 7; ip -6 route add local 2001:db8::/64 dev lo table 100",
    );
}

#[test]
fn removing_leaves_the_namespace_as_it_was() {
    let (netns, tools) = (pod(), Tools::default());
    with_foreign_rules(&netns);
    let before = everything_in(&netns);
    everything().install(&netns, &tools).unwrap();
    assert_eq!(everything().verify(&netns, &tools).unwrap(), []);
    assert_ne!(everything_in(&netns), before);
    everything().remove(&netns, &tools).unwrap();
    assert_eq!(everything_in(&netns), before);
    everything().remove(&netns, &tools).unwrap();
    assert_eq!(everything_in(&netns), before);
}

/// The usual tools, except that `name` runs `script`.
fn with_broken(name: &str, script: &str) -> (tempfile::TempDir, Tools) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let tools = Tools::looking_in([directory.path(), Path::new("/usr/sbin"), Path::new("/sbin")]);
    (directory, tools)
}

#[test]
fn a_failure_halfway_leaves_nothing_and_says_what_failed() {
    let netns = pod();
    with_foreign_rules(&netns);
    let before = everything_in(&netns);
    let (_directory, tools) = with_broken("ip6tables-restore", "echo no such luck >&2; exit 3");
    let error = everything().install(&netns, &tools).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`ip6tables-restore --noflush --wait=10` failed (exit status: 3): no such luck"
    );
    assert_eq!(everything_in(&netns), before);
}

#[test]
fn rules_that_were_accepted_and_are_not_there_are_a_failure() {
    let netns = pod();
    let before = everything_in(&netns);
    let (_directory, tools) = with_broken("ip6tables-restore", "exit 0");
    let error = ordinary().install(&netns, &tools).unwrap_err();
    assert!(matches!(&error, Error::Deviating(_)), "{error}");
    assert!(error.to_string().contains("IPv6 nat lacks the chain ISTIO_OUTPUT"), "{error}");
    assert!(!everything_in(&netns).contains("ISTIO"));
    assert_eq!(
        sh(&netns, "ip rule; ip -6 rule; ip route show table all").contains("100"),
        before.contains("100")
    );
}

#[test]
fn what_cannot_be_removed_is_said() {
    let netns = pod();
    let script = "grep -q -- -X && { echo stuck >&2; exit 4; }; echo broken >&2; exit 3";
    let (_directory, tools) = with_broken("iptables-restore", script);
    sh(&netns, "iptables -t nat -N ISTIO_OUTPUT; iptables -t nat -A ISTIO_OUTPUT -j RETURN");
    let error = ordinary().install(&netns, &tools).unwrap_err().to_string();
    assert!(error.contains("broken; and what was installed could not be removed"), "{error}");
    assert!(error.contains("stuck"), "{error}");
}

#[test]
fn a_missing_program_names_its_package_and_nothing_is_changed() {
    let netns = pod();
    let nowhere = Tools::looking_in(["/nonexistent"]);
    let error = ordinary().install(&netns, &nowhere).unwrap_err();
    assert_eq!(error.to_string(), "iptables-save is not installed; install the package iptables");
    let directory = tempfile::tempdir().unwrap();
    for name in ["iptables-save", "iptables-restore"] {
        symlink(Path::new("/usr/sbin").join(name), directory.path().join(name)).unwrap();
    }
    let error = ordinary().install(&netns, &Tools::looking_in([directory.path()])).unwrap_err();
    assert_eq!(error.to_string(), "ip is not installed; install the package iproute2");
}

#[test]
fn output_nobody_expects_is_an_error_and_not_an_empty_state() {
    let netns = pod();
    for (program, printed) in
        [("iptables-save", "-A OUTPUT -j ISTIO_OUTPUT"), ("iptables-save", "*nat\\nwhat"), ("ip", "[}")]
    {
        let (_directory, tools) = with_broken(program, &format!("printf '%b\\n' '{printed}'"));
        let error = ordinary().verify(&netns, &tools).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    }
}

#[test]
fn an_ipv6_route_is_not_asked_for_where_lo_has_no_ipv6() {
    let (netns, tools) = (pod(), Tools::default());
    sh(&netns, "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
    ordinary().install(&netns, &tools).unwrap();
    assert_eq!(ordinary().verify(&netns, &tools).unwrap(), []);
    assert!(!sh(&netns, "ip -6 route show table all").contains("100"));
}
