from tests.test_faults import *
@pytest.mark.timeout(280)
def test_loop(provider, customer, background):
    bad = 0
    for i in range(8):
        with running(provider, workers=2) as (gateway, process):
            calls = [background(gateway, customer, "a gem [sandbox delay=300ms]") for _ in range(6)]
            until_in_flight(customer, 6)
            process.child.send_signal(signal.SIGTERM)
            answers = [call.result() for call in calls]
            try:
                assert process.child.wait(4) == 0
            except Exception:
                bad += 1
                print("ROUND", i, "\n".join(l for l in process.text().splitlines() if "INFO" in l))
                os.killpg(process.child.pid, 9)
    print("BAD", bad)
