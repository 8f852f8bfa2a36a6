import time
from django.db import connection
from tokens import directory, comparison
from tests.test_directory import other_store
from config.redis import store
def test_scale(customer, other_store):
    with connection.cursor() as c:
        c.execute("insert into tokens_tenant(version,slug,name,status,timezone,next_timezone,origins,model,created_at) select 1,'s'||g,'s','active','UTC','','{}','',now() from generate_series(1,1000) g")
        c.execute("insert into tokens_membership(version,tenant_id,user_id,status,created_at) select 1,t.id,%s,'active',now() from tokens_tenant t where t.name='s'",[customer.member.user_id])
        c.execute("insert into tokens_proxytoken(version,tenant_id,member_id,name,status,networks,created_at,created_by,revoked_by,revoke_reason) select 1,m.tenant_id,m.id,'x','active','{}',now(),'','','' from tokens_membership m join tokens_tenant t on t.id=m.tenant_id, generate_series(1,100) g where t.name='s'")
        c.execute("insert into tokens_secret(token_id,digest,pepper_version,shown,imported,created_at,last_used_by) select p.id,encode(sha256(p.id::text::bytea),'hex'),1,'gem_',false,now(),'' from tokens_proxytoken p where name='x'")
        c.execute("insert into tokens_limit(tenant_id,token_id,metric,period,amount,created_at) select p.tenant_id,p.id,'images','day',5,now() from tokens_proxytoken p where name='x'")
        c.execute("analyze")
    t=time.time(); p=time.process_time(); n=directory.load_all(); print("\nload",n,time.time()-t,time.process_time()-p)
    t=time.time(); p=time.process_time(); n=directory.load_all(); print("again",n,time.time()-t,time.process_time()-p)
    import resource
    t=time.time(); p=time.process_time(); d=comparison.compare(); print("compare",d.counts(),time.time()-t,time.process_time()-p, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    import cProfile,pstats
    pr=cProfile.Profile(); pr.enable(); comparison.compare(); pr.disable(); pstats.Stats(pr).sort_stats("tottime").print_stats(18)
